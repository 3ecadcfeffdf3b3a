"""Scoring in processes of this machine: a crash ends one of them, not the search.

Not a `ProcessPoolExecutor`: when one of its processes dies it gives up all of them with all that waits, and does not
say whose candidate it was.
"""

from __future__ import annotations

import logging
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from edgekd.core.recipe import ModelRecipe
from edgekd.errors import EdgekdError, UserError
from edgekd.search.scorer_spec import ScorerSpec
from edgekd.search.scoring import Score

_log = logging.getLogger(__name__)
_READY = "ready"
_OOM_PREFERENCE = "500"
"""Of at most 1000: when memory runs out the kernel ends a scoring process rather than the search."""
_END_S = 10.0


class ProcessWorkers:
    """Scores one candidate at a time in each of several processes.

    A candidate that ends its process is scored once more when all others are done, alone, for it may have been the
    neighbours who filled the memory. The processes start when the first candidates come, leave Ctrl-C to the search,
    and end with it: at `close`, at the exit of the interpreter, or, when the search itself is killed, at the end of
    the candidate that they are at.

    Args:
        spec: Of the scorer that each process builds for itself.
        processes: How many; each computes on one thread.
    """

    def __init__(self, spec: ScorerSpec, *, processes: int) -> None:
        self.width = processes
        self._spec = spec
        self._workers: list[_Worker] = []

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        found: dict[int, Score] = {}
        suspects: list[int] = []
        waiting = deque(range(len(recipes)))
        while len(found) + len(suspects) < len(recipes):
            for worker in self._idle(len(waiting)):
                number = waiting.popleft()
                worker.take(number, recipes[number])
            for worker in self._speaking():
                number = worker.number
                try:
                    score = worker.heard()
                except _Died as death:
                    _log.warning("candidate %d (%s) %s; it is tried again", number, recipes[number].builder, death)
                    self._workers.remove(worker)
                    suspects.append(number)
                else:
                    found |= {} if score is None else {number: score}
        for number in suspects:
            found[number] = self._score_alone(recipes[number])
        return [found[number] for number in range(len(recipes))]

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def _idle(self, wanted: int) -> list[_Worker]:
        """At most so many workers that have nothing to do, started where there are not enough."""
        idle = [worker for worker in self._workers if worker.number < 0][:wanted]
        started = [_Worker(self._spec) for _ in range(min(wanted - len(idle), self.width - len(self._workers)))]
        self._workers += started
        return idle + started

    def _speaking(self) -> list[_Worker]:
        """The busy workers that have something to say, or have died; waits for the first."""
        busy = {worker.connection: worker for worker in self._workers if worker.number >= 0}
        return [busy[connection] for connection in wait(list(busy)) if isinstance(connection, Connection)]

    def _score_alone(self, recipe: ModelRecipe) -> Score:
        [worker] = self._idle(1)
        worker.take(0, recipe)
        try:
            while (score := worker.heard()) is None:
                pass
        except _Died as death:
            self._workers.remove(worker)
            return Score(values=(), spreads=(), skipped=f"It {death}.")
        return score


class _Died(Exception):
    """How a worker ended, as the end of a sentence about its candidate."""


class _Worker:
    """A process, and this side of the pipe to it.

    Attributes:
        connection: Readable when the process has something to say, and when it has died.
        number: Of the candidate that it scores; -1 while it has nothing to do.
    """

    def __init__(self, spec: ScorerSpec) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.number = -1
        self._process = context.Process(target=_serve, args=(theirs,), name="edgekd-scorer", daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False
        self._unsent: list[ScorerSpec | ModelRecipe] = [spec]

    def take(self, number: int, recipe: ModelRecipe) -> None:
        """Starts scoring a candidate."""
        self.number = number
        self._unsent.append(recipe)
        # The spec goes with the first candidate: sending it waits until the process listens, and by then all of them
        # have been started. A process that has died is noticed when it is listened to.
        with suppress(BrokenPipeError, ConnectionResetError):
            while self._unsent:
                self.connection.send(self._unsent.pop(0))

    def heard(self) -> Score | None:
        """The score of the candidate that it took, or None when it only says that it is ready to score it.

        Raises:
            _Died: The process ended at this candidate.
            UserError: It ended before it could score any.
            EdgekdError: What the scorer raised.
        """
        try:
            message: object = self.connection.recv()
        except (EOFError, ConnectionResetError) as err:
            death = self._death()
            if self._ready:
                raise _Died(death) from err
            raise UserError(
                f"A scoring process {death} before it could score anything.",
                hint="a script must search under `if __name__ == '__main__':`, for each process imports it; "
                "--workers 1 scores in the process of the search",
            ) from err
        if message == _READY:
            self._ready = True
            return None
        self.number = -1
        if isinstance(message, EdgekdError):
            raise message
        assert isinstance(message, Score)
        return message

    def kill(self) -> None:
        """Ends the process, which has nothing to lose."""
        self._process.kill()
        self._process.join(_END_S)
        self.connection.close()

    def _death(self) -> str:
        self._process.join(_END_S)
        code = self._process.exitcode
        self.kill()
        if code == -signal.SIGKILL:
            return "ended the worker process: probably out of memory"
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"ended the worker process ({how})"


def _serve(connection: Connection[Any, Any]) -> None:
    """Runs in the process: builds the scorer, says so, and answers each recipe with a `Score` or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_PREFERENCE, encoding="ascii")
    # Nobody to read from, nobody to write to: the search has ended.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        spec: ScorerSpec = connection.recv()
        with _telling(connection):
            scorer = spec.scorer()
        connection.send(_READY)
        while True:
            recipe: ModelRecipe = connection.recv()
            with _telling(connection):
                score = scorer.score(recipe)
            connection.send(score)


@contextmanager
def _telling(connection: Connection[Any, Any]) -> Iterator[None]:
    """Tells the search of an error and ends the process."""
    try:
        yield
    except BaseException as err:
        connection.send(_in_words(err))
        raise SystemExit(1) from err


def _in_words(err: BaseException) -> EdgekdError:
    """An error that survives the pipe, whatever it was; its traceback goes along as a note."""
    told = err if isinstance(err, EdgekdError) else EdgekdError(f"Scoring failed: {type(err).__name__}: {err}")
    told.add_note(f"In a scoring process:\n{traceback.format_exc()}")
    return told
