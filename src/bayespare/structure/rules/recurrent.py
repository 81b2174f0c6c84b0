"""Recurrent layers: refused whole, by name."""

from __future__ import annotations

from torch import Tensor, nn

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Value
from bayespare.structure.rules.registry import module_rule


@module_rule(nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def recurrent(flow: Flow, call: Call, module: nn.Module, _value: Tensor) -> Value:
    """A state of fixed size runs through time: nothing that enters or leaves can be removed."""
    reason = flow.where(call, "is recurrent: the sizes of its state are fixed")
    flow.refuse(call, reason)
    for name, _ in module.named_parameters():
        flow.ledger.lose(f"{flow.stack.name}.{name}" if flow.stack.name else name, reason)
    return None
