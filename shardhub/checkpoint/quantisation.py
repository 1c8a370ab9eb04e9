"""How a model is quantised while it is split, checked before anything of it is read."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.errors import UsageError
from shardhub.manifest import SourceQuantization
from shardhub.setting_checks import check_settings

# Bits and group sizes of each mode; the first of each is the default.
# Source: mlx.core.quantize, and mlx_lm/utils.py, quantize_model.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}
# Source: mlx_lm/convert.py, QUANT_RECIPES.
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
# The mode of every recipe.
_RECIPE_MODE = "affine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How a model's weights are quantised while it is split: as mlx_lm.convert does.

    Attributes:
        bits: Bits per weight; None takes the mode's default.
        group_size: Number of weights that share a scale; None takes the mode's default.
        mode: `affine`, `mxfp4`, `nvfp4` or `mxfp8`.
        recipe: mlx-lm's recipe of mixed bits, such as `mixed_4_6`: it decides each module's bits. Affine only.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mode not in MODES:
            raise UsageError(f"`mode` is {self.mode[:40]!r}.", why=f"It must be one of {', '.join(MODES)}.")
        for name, value, allowed in zip(
            ("bits", "group_size"), (self.bits, self.group_size), MODES[self.mode], strict=True
        ):
            if value is not None and value not in allowed:
                choices = ", ".join(map(str, sorted(allowed)))
                only = f"only {choices}" if len(allowed) == 1 else f"one of {choices}"
                raise UsageError(f"`{name}` is {value}.", why=f"With `mode` {self.mode} it can be {only}.")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise UsageError(f"`recipe` is {self.recipe[:40]!r}.", why=f"It must be one of {', '.join(RECIPES)}.")
        if self.recipe is not None and self.mode != _RECIPE_MODE:
            raise UsageError(
                f"`recipe` {self.recipe} cannot be combined with `mode` {self.mode}.",
                why=f"mlx-lm's recipes are {_RECIPE_MODE}.",
                hint="Leave out one of the two.",
            )

    @classmethod
    def of(cls, record: SourceQuantization) -> Quantisation:
        """The quantisation that a document records.

        Raises:
            UsageError: It is not one of mlx-lm's.
        """
        return cls(bits=record.bits, group_size=record.group_size, mode=record.mode, recipe=record.recipe)

    @property
    def record(self) -> SourceQuantization:
        """What documents record of it: every number is stated."""
        all_bits, group_sizes = MODES[self.mode]
        return SourceQuantization(
            bits=self.bits or all_bits[0],
            group_size=self.group_size or group_sizes[0],
            mode=self.mode,
            recipe=self.recipe,
        )


def quantised_name(name: str, record: SourceQuantization) -> str:
    """A model's name with its quantisation, as conversions are named on the Hub: `NAME-4bit`, `NAME-mxfp4`.

    A group size is named only if it is not the mode's default.
    """
    bits = f"{record.bits}bit" if record.mode == _RECIPE_MODE else record.mode
    form = bits if record.recipe is None else record.recipe.replace("_", "-")
    default = MODES[record.mode][1][0]
    return f"{name}-{form}" if record.group_size == default else f"{name}-{form}-gs{record.group_size}"


def quantisation_text(record: SourceQuantization) -> str:
    """A quantisation in a few words, such as "4 bits, affine, in groups of 64"."""
    bits = f"{record.bits} bits" if record.recipe is None else f"mlx-lm's recipe {record.recipe}"
    return f"{bits}, {record.mode}, in groups of {record.group_size}"
