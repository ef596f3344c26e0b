"""Records the moments of gradients and activations during training, for `--watch`."""

from __future__ import annotations

from netdsl.data.samples import Batch
from netdsl.runtime.executor import Executor, Workspace
from netdsl.training.run.stepper import Stepper
from netdsl.training.step.watch import WatchRequest, build_watch_graph, summarise_watch
from netdsl.training.store.metrics_log import MetricsLog


class WatchMonitor:
    """Runs a separate graph every `request.every` updates and records its moments in
    metrics.jsonl."""

    def __init__(
        self, request: WatchRequest, stepper: Stepper, workspace: Workspace, log: MetricsLog
    ) -> None:
        self.request, self.stepper, self.log = request, stepper, log
        job, state = stepper.job, stepper.state
        graph = build_watch_graph(job.network, job.recipe, request.quantities)
        self.executor = Executor(graph, state.backend, state, workspace=workspace)

    def record(self, batch: Batch) -> None:
        """Records the state before the next update, if due."""
        update = self.stepper.progress.update
        if update % self.request.every:
            return
        self.stepper.synchronize()  # ends the run first if an earlier update diverged
        out = self.executor.run(self.stepper.inputs(batch))
        moments = {k: self.executor.backend.download(v) for k, v in out.items()}
        found = summarise_watch(self.executor.graph, moments, self.stepper.job.network)
        self.log.add({"watched_at": update, **found})
