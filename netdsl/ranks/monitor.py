"""The monitor: a thread per rank that passes on faults, signals and the watchdog's questions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from netdsl.interrupt import announce_stop
from netdsl.ranks.activity import Activity
from netdsl.ranks.faults import FaultCollector, RankFault
from netdsl.ranks.watchdog import TIMEOUT_VARIABLE, Patience, RankPlace, Watchdog, find_place

_INTERVAL = 0.1
"""Seconds between two looks for messages."""
_TIMEOUT_CODE = 2


class Mailbox(Protocol):
    """Messages between ranks, for one thread."""

    def send(self, rank: int, data: bytes) -> None: ...

    def receive(self) -> tuple[int, bytes] | None:
        """Returns the next message with the rank that sent it; None if there is none now."""
        ...


class Monitor:
    """One rank's monitor. `show` prints a text for people, `abort` ends all ranks with an exit
    code. Messages are JSON objects, whose `kind` says which method handles them."""

    def __init__(
        self,
        rank: int,
        hosts: Sequence[str],
        activity: Activity,
        mailbox: Mailbox,
        patience: Patience,
        show: Callable[[str], None],
        abort: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank, self._size = rank, len(hosts)
        self._activity, self._mailbox = activity, mailbox
        self._show, self._abort, self._clock = show, abort, clock
        self._faults = FaultCollector(hosts)
        self._watchdog = Watchdog(rank, hosts, activity, patience)
        self._outbox: SimpleQueue[tuple[int, dict[str, Any]]] = SimpleQueue()
        self._is_asked_to_stop = self._has_passed_on = self._has_announced = False
        self._is_over = False
        self._ended, self._stopping = threading.Event(), threading.Event()
        self._end_code: int | None = None
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after which this rank sends nothing any more."""
        self._stopping.set()
        self._thread.join()

    def drain(self) -> None:
        """Receives what the other ranks have sent, when all monitors have stopped."""
        while self._mailbox.receive() is not None:
            pass

    # ---- what the rank tells its monitor

    def note_stop(self) -> None:
        """A signal asks this rank to stop; safe to call from its handler. Rank 0 says so, once."""
        self._is_asked_to_stop = True
        if self._rank == 0 and not self._has_announced:
            self._has_announced = True
            announce_stop()

    def report_fault(self, text: str, code: int) -> None:
        """This rank has ended, by an error or an interrupt."""
        fault = RankFault(text, code, self._activity.is_idle)
        self._outbox.put((0, {"kind": "fault", **asdict(fault)}))

    def wait_for_end(self, seconds: float) -> int | None:
        """Waits for the order to end with an exit code, which comes once all ranks have ended; an
        abort ends the process instead. Returns None if there is neither within this time."""
        self._ended.wait(seconds)
        return self._end_code

    # ---- the thread

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL):
            self.step()

    def step(self) -> None:
        """Handles what has arrived and what is due now."""
        if self._is_asked_to_stop and not self._has_passed_on:
            self._has_passed_on = True
            self._send(0, kind="stop")
        self._send_outbox()
        while (found := self._mailbox.receive()) is not None:
            rank, data = found
            self._handle(rank, json.loads(data))
        self._watch()
        if self._faults.is_due(self._clock()) and not self._is_over:
            self._end()

    def _send_outbox(self) -> None:
        while True:
            try:
                rank, message = self._outbox.get_nowait()
            except Empty:
                return
            self._send(rank, **message)

    def _send(self, rank: int, **message: Any) -> None:
        if rank == self._rank:
            self._handle(rank, message)
        else:
            self._mailbox.send(rank, json.dumps(message).encode())

    def _send_to_others(self, **message: Any) -> None:
        for rank in range(self._size):
            if rank != self._rank:
                self._send(rank, **message)

    def _handle(self, rank: int, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        if kind == "fault":
            self._faults.add(rank, RankFault(**message), self._clock())
        elif kind == "end":
            self._end_code = message["code"]
            self._ended.set()
        elif kind == "where":
            self._watchdog.postpone(self._clock())
            self._send(rank, kind="place", **asdict(find_place(self._activity)))
        elif kind == "place":
            self._watchdog.add_answer(rank, RankPlace(**message))
        elif kind == "report":
            self._show(message["text"])
        elif kind == "stop" and not self._has_announced:
            self._has_announced = True
            announce_stop()

    def _watch(self) -> None:
        now = self._clock()
        if self._watchdog.is_due(now):
            self._watchdog.start(now)
            self._send_to_others(kind="where")
        places = self._watchdog.take_answers(now)
        if places is None or self._activity.is_idle:
            return
        text = self._watchdog.describe(places)
        if self._watchdog.is_over(places):
            help = f"help: {TIMEOUT_VARIABLE}=SECONDS changes how long they wait"
            text, is_over = f"error: {text}, so the run ends\n{help}", True
        else:
            is_over = False
        if 0 in places:
            self._send(0, kind="report", text=text)
        else:
            self._show(text)
        if is_over:
            self._is_over = True
            self._abort(_TIMEOUT_CODE)

    def _end(self) -> None:
        """Reports the faults and ends all ranks: by order if each of them has ended, else by an
        abort."""
        self._is_over = True
        self._show(self._faults.describe())
        if self._faults.is_orderly:
            self._send_to_others(kind="end", code=self._faults.code)
            self._handle(self._rank, {"kind": "end", "code": self._faults.code})
        else:
            self._abort(self._faults.code)
