"""Live progress of a federated run on the terminal, or one plain line a round elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.report.briefing import briefing_table, briefing_text
from fedhq_lightning.report.final_table import on_terminal
from fedhq_lightning.report.formats import MODE_NAMES, PHASES, format_metric, format_modes, format_seconds
from fedhq_lightning.run.records import LEFT_OUT, ClientRecord, RoundRecord
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.support.setup_notice import clear_notice
from fedhq_lightning.support.terminal import Terminal
from fedhq_lightning.types import ClientId, Mode, Plan

_ROUNDS_FOR_ETA = 10
_REFRESHES_PER_SECOND = 4
_BEFORE_THE_ROUNDS = ("start", "set_up", "compile")
_WITHIN_A_ROUND = {
    "secure": "masking",
    "statistics": "taking batch statistics",
    "evaluate": "evaluating",
    "save": "saving",
}
_AFTER_THE_ROUNDS = ("fine_tuning", "deploy", "final_evaluation", "report")
_LABEL = max(len(PHASES[phase]) for phase in _AFTER_THE_ROUNDS)


class ProgressDisplay(RoundCallback):
    """Shows rounds, clients within the round and who trains, the monitored metric, both clocks and the ETA.

    The metric is that of the quantized and of the fp model. Before the first round, once, comes the allocator's plan in
    brief, where it has one.

    On a terminal a display that redraws itself; without one (a pipe, a log file, TERM=dumb) one plain line a round.
    NO_COLOR is respected. Only the first process shows anything; it counts the clients that it trains itself, and
    those of other processes arrive at the end of the round.

    Args:
        console: Where to show; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._output = console
        self._live: Live | None = None
        self._view = _View()

    def on_fit_start(self, trainer: RoundControl) -> None:
        """Begin the display."""
        clear_notice()
        if not trainer.is_global_zero:
            return
        # Made here and not in the constructor: standard output may be another one by now.
        self._output = self._console or Terminal()
        name = trainer.monitored.name or "metric"
        self._view = _View(trainer.settings.max_rounds, name, lambda: trainer.should_stop, trainer.clock)
        self._print_line(_started(trainer.clock.own()))
        if trainer.settings.privacy is not None:
            self._print_line(trainer.settings.privacy.briefing)
        briefing = getattr(trainer.settings.allocator, "briefing", None)
        if briefing is not None and on_terminal(self._output):
            self._output.print(briefing_table(briefing))
        elif briefing is not None:
            self._print_line(briefing_text(briefing))
        if on_terminal(self._output):
            self._live = Live(self._view, console=self._output, refresh_per_second=_REFRESHES_PER_SECOND)
            self._live.start()
        trainer.clock.on_phase = self._say_phase

    def on_round_start(self, trainer: RoundControl, round_number: int, plan: Plan) -> None:
        """Show the round's cohort."""
        if trainer.is_global_zero:
            self._view.start_round(round_number, plan)

    def on_client_start(self, trainer: RoundControl, client_id: ClientId, mode: Mode) -> None:
        """Show who trains."""
        if trainer.is_global_zero:
            self._view.doing = f"client {client_id} trains in {MODE_NAMES[mode]}"

    def on_client_end(self, trainer: RoundControl, record: ClientRecord) -> None:
        """Count the client."""
        if trainer.is_global_zero:
            self._view.clients_done += 1
            self._view.doing = "aggregating"

    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        """Show the round's result."""
        if not trainer.is_global_zero:
            return
        self._view.name = trainer.monitored.name or self._view.name
        self._view.end_round(record)
        if self._live is None and self._output is not None:
            self._print_line(self._view.line(record))

    def on_fit_end(self, trainer: RoundControl) -> None:
        """Leave the last state on the screen."""
        self._stop()

    def on_exception(self, trainer: RoundControl, error: BaseException) -> None:
        """Give the terminal back, so that the error is readable below."""
        self._stop()

    def _say_phase(self, phase: str) -> None:
        """Say what begins; the display has a line of its own for what follows the rounds."""
        if self._live is not None:
            within = "" if phase in _AFTER_THE_ROUNDS else self._view.doing
            self._view.doing = _WITHIN_A_ROUND.get(phase, within)
        elif phase in _AFTER_THE_ROUNDS:
            self._print_line(f"{PHASES[phase]} ...")

    def _print_line(self, text: str) -> None:
        assert self._output is not None
        self._output.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._view.leave()
            self._live.stop()
            self._live = None


class _View:
    """State of the display and its rendering; no terminal needed."""

    def __init__(
        self,
        max_rounds: int = 0,
        name: str = "metric",
        should_stop: Callable[[], bool] = lambda: False,
        clock: PhaseClock | None = None,
    ) -> None:
        self._clock = clock
        self._should_stop = should_stop
        self.max_rounds = max_rounds
        self.name = name
        self.rounds_done = 0
        self.plan = Plan({})
        self.clients_done = 0
        self.doing = ""
        self.last: RoundRecord | None = None
        self.evaluated: RoundRecord | None = None
        self._recent: deque[float] = deque(maxlen=_ROUNDS_FOR_ETA)
        # Start of the round that is running; None between rounds, when the run's wall clock stands still.
        self._since: float | None = time.monotonic()
        self._left = False

    def start_round(self, round_number: int, plan: Plan) -> None:
        self._since = time.monotonic()
        self.rounds_done, self.plan, self.clients_done, self.doing = round_number - 1, plan, 0, ""

    def end_round(self, record: RoundRecord) -> None:
        self.rounds_done, self.last, self.clients_done, self.doing = record.round, record, len(record.clients), ""
        if record.monitored is not None:
            self.evaluated = record
        if record.round > 0:
            self._recent.append(record.wall_seconds)
        self._since = None

    def leave(self) -> None:
        self._left, self._since = True, None

    def _elapsed(self) -> float:
        """Wall seconds of the running round so far."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def _outlook(self, elapsed: float) -> str:
        """What is still to come."""
        if self._left:
            return ""
        if self._since is None and (self.rounds_done >= self.max_rounds or self._should_stop()):
            return ""
        return f" | ETA {self.eta(elapsed)} wall"

    def eta(self, elapsed: float = 0.0) -> str:
        """Wall time to go, from the mean of the last rounds."""
        if not self._recent:
            return "-"
        mean = sum(self._recent) / len(self._recent)
        return format_seconds(max(0.0, (self.max_rounds - self.rounds_done) * mean - elapsed))

    def metric(self, record: RoundRecord | None) -> str:
        if record is None or record.monitored is None:
            return f"{self.name} not evaluated"
        return f"{self.name} quantized {_short(record.metric_quantized)} fp {_short(record.metric_fp)}"

    def line(self, record: RoundRecord) -> str:
        """One round in one line."""
        parts = [f"round {record.round}/{self.max_rounds}", self.metric(record)]
        if record.clients:
            parts.append(format_modes(record.mode_counts))
        parts += [f"{count} {status}" for status in LEFT_OUT if (count := getattr(record, status))]
        parts += [f"epsilon {record.epsilon:.3g}"] if record.epsilon is not None else []
        parts.append(f"wall {format_seconds(record.total_wall_seconds)}")
        parts.append(f"virtual {format_seconds(record.total_virtual_seconds)}")
        if self._recent:
            parts.append(f"ETA {self.eta()} wall")
        return " | ".join(parts)

    def _cohort(self) -> str:
        """The round's modes, and what happens now."""
        return " | ".join(part for part in (format_modes(self.plan.counts()), self.doing) if part)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bars = (
            ("rounds", self.rounds_done, self.max_rounds, ""),
            ("clients", self.clients_done, len(self.plan.modes), self._cohort()),
        )
        counts = [f"{done:,}/{total:,}" for _, done, total, _ in bars]
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=_LABEL)
        grid.add_column(width=max(6, min(30, options.max_width // 4)))
        grid.add_column(width=max(map(len, counts)), justify="right")
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for count, (label, done, total, note) in zip(counts, bars, strict=True):
            grid.add_row(label, ProgressBar(total=max(total, 1), completed=done), count, Text(note, style="cyan"))
        yield grid
        yield Text(self.metric(self.evaluated), no_wrap=True, overflow="ellipsis", style="cyan")
        elapsed = self._elapsed()
        wall = elapsed + (self.last.total_wall_seconds if self.last else 0.0)
        virtual = self.last.total_virtual_seconds if self.last else 0.0
        clocks = f"wall {format_seconds(wall)} | virtual {format_seconds(virtual)}{self._outlook(elapsed)}"
        if self.last and self.last.epsilon is not None:
            clocks += f" | epsilon {self.last.epsilon:.3g}"
        left_out = [f"{count} {status}" for status in LEFT_OUT if self.last and (count := getattr(self.last, status))]
        if left_out:
            clocks += f" | last round: {', '.join(left_out)}"
        yield Text(clocks, no_wrap=True, overflow="ellipsis", style="dim")
        seconds = {} if self._clock is None else self._clock.own()
        for phase in _AFTER_THE_ROUNDS:
            if phase in seconds:
                yield Text(f"{PHASES[phase]:<{_LABEL}} {format_seconds(seconds[phase])} wall", style="dim")


def _started(seconds: Mapping[str, float]) -> str:
    """How long it took to get here."""
    parts = {PHASES[phase]: seconds[phase] for phase in _BEFORE_THE_ROUNDS if phase in seconds}
    told = ", ".join(f"{label} {format_seconds(value)}" for label, value in parts.items())
    return f"{told} wall"


def _short(value: float | None) -> str:
    return "-" if value is None else format_metric(value)
