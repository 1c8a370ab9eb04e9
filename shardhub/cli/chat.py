"""`shardhub chat`."""

from __future__ import annotations

import contextlib
import sys

from shardhub.chain.head import Timing
from shardhub.cli.generate import SamplingOptions, note_limits, prefill_progress, summary, typed_text
from shardhub.cli.run import print_error
from shardhub.errors import PromptError
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.start_head import HeadOptions, start_head
from shardhub.usecases.terminal import end_answer, note, write_answer


def chat(head_options: HeadOptions, sampling: SamplingOptions, *, system: str | None) -> int:
    """Talk until the end of input; Ctrl-C stops an answer and leaves the chat as it is."""
    parameters = sampling.parameters()
    opening = [{"role": "system", "content": typed_text(system)}] if system else []
    messages = list(opening)
    with contextlib.suppress(ImportError):  # line editing and history, where Python has it
        import readline  # noqa: F401
    with LoopThread() as loop:
        head = start_head(loop, head_options)
        note_limits(head, sampling)
        note("Ctrl-C stops an answer, /new starts over, Ctrl-D ends the chat.")
        try:
            while (line := _read_line()) is not None:
                if not line.strip():
                    continue
                if line.strip() == "/new":
                    messages = list(opening)
                    continue
                messages.append({"role": "user", "content": line})
                timing = Timing()
                text = ""
                try:
                    ids = head.tokenizer.render_chat(messages).ids
                    answer = head.answer(
                        ids,
                        parameters,
                        max_tokens=sampling.max_tokens,
                        stops=sampling.stop,
                        drafter=sampling.drafter(),
                        timing=timing,
                        progress=prefill_progress(),
                    )
                    for piece in loop.iterate(answer):
                        text += piece.text
                        write_answer(piece.text)
                    end_answer()
                    note(summary(timing))
                except KeyboardInterrupt:
                    end_answer()
                    note("stopped")
                except PromptError as error:
                    print_error(error)
                    messages.pop()
                    continue
                messages.append({"role": "assistant", "content": text})
        finally:
            loop.wait(head.stop())
    return 0


def _read_line() -> str | None:
    """The next line of input; None at its end. Ctrl-C at the prompt discards the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return None
        except KeyboardInterrupt:
            print()
            note("Ctrl-D ends the chat.")
