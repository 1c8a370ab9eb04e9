"""Steps in flight: sent as credit allows, timed, and failed once they are late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from shardhub.chain.credit import Credit, Deadlines
from shardhub.chain.session import RowToSend
from shardhub.chain.slow_stage import find_slow_stage
from shardhub.chain.step_sizes import StepSizes
from shardhub.chain.tasks import Tasks
from shardhub.clock import Clock
from shardhub.errors import ShardhubError
from shardhub.protocol import Lane, Mask, Row, RowResult, Step

_ANY_MASK = b"\xff"


class Steps:
    """Sends a chain's steps.

    Args:
        sizes: Sizes of steps, which are charged to the credit.
        credit: Limits what is in flight.
        clock, tasks: The chain's.
        went_round: Called for each step that came round with its lane, rows, and seconds.

    Attributes:
        credit: Limits what is in flight.
        deadlines: Timeouts of steps.
        sent_bytes: Bytes of ids and tensors that this process sent to nodes.
    """

    def __init__(
        self,
        sizes: StepSizes,
        credit: Credit,
        *,
        clock: Clock,
        tasks: Tasks,
        went_round: Callable[[Lane, int, float], None],
    ) -> None:
        self.credit = credit
        self.deadlines = Deadlines()
        self.sent_bytes = 0
        self._sizes = sizes
        self._clock = clock
        self._tasks = tasks
        self._went_round = went_round
        self._num_ids_out = 0
        self._num_ids: dict[tuple[bytes, int], int] = {}

    def num_ids(self, first: RowResult) -> int | None:
        """Ids of the step to which a result's first row belongs; None if it is no longer waited for."""
        return self._num_ids.get((first.session, first.position))

    async def send(
        self, rows: Sequence[RowToSend], *, lane: Lane, verify: bool = False
    ) -> list[asyncio.Future[RowResult]]:
        """Send one step of several sessions as soon as credit allows; the futures give the results.

        Args:
            rows: Sessions of one path, each with the same number of ids.
            lane: The lane it travels on; a session's steps keep their order only within a lane.
            verify: The ids after the first of each row are drafts.

        Raises:
            ContextExceeded: A session was opened for fewer positions; nothing was sent.
            ChainError, SessionError: A session or the chain has failed; nothing was sent.
        """
        length, num_ids = len(rows[0].ids), sum(len(row.ids) for row in rows)
        for row in rows:
            row.session.check(row)
        total = max(row.session.context for row in rows)
        credit = await self.credit.take(self._sizes.largest(len(rows), length, total))
        try:
            for row in rows:
                row.session.check(row)
            now = self._clock.now()
            timeout_s = self.deadlines.timeout_s(self._num_ids_out + num_ids)
            step = Step(
                rows=tuple(
                    Row(
                        session=row.session.id,
                        epoch=row.session.epoch,
                        position=row.session.position - row.discard,
                        sample=row.sample,
                        discard=row.discard,
                        masked=row.mask is not None,
                        targets=tuple(row.targets),
                    )
                    for row in rows
                ),
                length=length,
                ids=np.asarray([row.ids for row in rows], np.int32).tobytes(),
                crossings={},
                deadline=now + timeout_s,
                lane=lane,
                verify=verify,
            )
            rows[0].session.path.links[0].send(step)
            self.sent_bytes += step.size_bytes
        except BaseException:
            self.credit.give(credit)
            raise
        self._num_ids_out += num_ids
        on_the_way = self._num_ids_out
        futures = [row.session.sent(row) for row in rows]
        sent_as = (rows[0].session.id, rows[0].session.position)
        self._num_ids[sent_as] = num_ids
        late: list[asyncio.Task[None]] = []
        timer = self._clock.call_later(
            timeout_s, lambda: late.append(self._tasks.begin(self._fail_late(rows, step, timeout_s)))
        )
        if any(row.mask is not None for row in rows):
            self._tasks.begin(self._send_masks(rows, step))
        left = len(futures)

        def ended(future: asyncio.Future[RowResult]) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            timer.cancel()
            for task in late:
                task.cancel()
            self._num_ids.pop(sent_as, None)
            self._num_ids_out -= num_ids
            self.credit.give(credit)
            if not future.cancelled() and future.exception() is None:
                seconds = self._clock.now() - now
                self.deadlines.took(on_the_way, seconds)
                self._went_round(lane, len(rows), seconds)

        for future in futures:
            future.add_done_callback(ended)
        return futures

    async def _send_masks(self, rows: Sequence[RowToSend], step: Step) -> None:
        """Make the masks of a step in flight, and send them to the last stage."""
        loop = asyncio.get_running_loop()
        link = rows[0].session.path.links[-1]

        async def made(row: RowToSend, sent: Row) -> Mask:
            assert row.mask is not None
            try:
                allowed = await loop.run_in_executor(None, row.mask)
            except ShardhubError as error:
                row.session.on_failure(sent.epoch, error)
                allowed = _ANY_MASK  # no caller waits for this row's draw, but other rows of the step wait for the step
            at = sent.position + step.length
            return Mask(session=sent.session, epoch=sent.epoch, position=at, allowed=allowed)

        waiting = [made(row, sent) for row, sent in zip(rows, step.rows, strict=True) if row.mask is not None]
        masks = await asyncio.gather(*waiting)
        try:
            link.send_masks(masks, step.lane)
        except ShardhubError as error:
            for row, sent in zip(rows, step.rows, strict=True):
                row.session.on_failure(sent.epoch, error)

    async def _fail_late(self, rows: Sequence[RowToSend], step: Step, timeout_s: float) -> None:
        """Fail the sessions of a step that did not come round in time, naming the stage that delays it."""
        error = await find_slow_stage(rows[0].session.path.links, timeout_s, clock=self._clock)
        for row, sent in zip(rows, step.rows, strict=True):
            row.session.on_failure(sent.epoch, error)
