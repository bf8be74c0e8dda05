"""How Ray Serve chooses a replica for a call: :func:`specdec.serving.affinity.tiers`."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from specdec.serving.affinity import tiers
from specdec.serving.calls import Call


class AffinityRouter(RequestRouter):
    """Sends a :class:`Call` to the replica of its key, or past it when that one is busy."""

    def initialize_state(self, **options: Any) -> None:  # Any: Serve's own signature
        """Called by Serve with the router's options.

        Args:
            **options: ``busy`` of :func:`specdec.serving.affinity.tiers`.
        """
        self._busy: int = options["busy"]

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Called by Serve: who may be asked, the best first."""
        if pending_request is None:
            return [candidate_replicas]
        # Without this Serve would ask again at once, for ever, while all are full.
        pending_request.routing_context.should_backoff = True
        first = pending_request.args[0] if pending_request.args else None
        key, tried = (first.key, first.tried) if isinstance(first, Call) else (None, ())
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        # Counts of who asks here; what others ask is in there since the last answer.
        told = self.replica_queue_len_cache
        loads = {name: told.get(replica.replica_id) or 0 for name, replica in named.items()}
        return [[named[name] for name in tier] for tier in tiers(key, loads, self._busy, tried)]
