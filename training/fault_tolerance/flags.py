"""What one process has noticed and all must act on alike: exchanged once a batch, without waiting for the device."""

import torch
import torch.distributed as dist

from utils.distributed import world_size


class SharedFlags:
    """Two notes a batch: somebody was asked to stop, somebody's loss is not a number.

    Sending costs one reduction of two numbers. Reading waits for the device, so it happens where that has
    caught up anyway: after the backward pass, or inside the optimizer's step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sent: list[torch.Tensor] = []  # [2] of each batch

    def send(self, stop: bool, bad_loss: torch.Tensor | bool = False) -> None:
        """Exchange this process's notes on a batch; all processes call. `bad_loss`: a scalar, True where so."""
        notes = torch.zeros(2, dtype=torch.int32, device=self.device)
        notes[0] = stop
        notes[1] = bad_loss
        if world_size() > 1:
            dist.all_reduce(notes, op=dist.ReduceOp.MAX)
        self._sent.append(notes)

    def read(self) -> tuple[bool, bool]:
        """Whether anybody is to stop, and whether any loss was bad, since the last `clear`."""
        if not self._sent:
            return False, False
        stop, bad_loss = torch.stack(self._sent).amax(dim=0).tolist()
        return bool(stop), bool(bad_loss)

    def clear(self) -> None:
        """Begin a new step."""
        self._sent.clear()
