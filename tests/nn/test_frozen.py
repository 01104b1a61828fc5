"""A frozen view shares a module's memory and asks for no gradient."""

import torch

from hashfield.nn import EncodingConfig, MLPConfig, NetworkWithEncoding, encoding_from_config
from hashfield.nn.frozen import frozen_view


def test_a_view_shares_memory_and_leaves_the_module_trainable():
    encoding = encoding_from_config(EncodingConfig(n_levels=2, log2_hashmap_size=8), 2)
    module = NetworkWithEncoding(encoding, 1, MLPConfig(16, 1))
    view = frozen_view(module)
    assert all(p.requires_grad for p in module.parameters())
    assert not any(p.requires_grad for p in view.parameters())
    x = torch.rand(5, 2)
    before = view(x)
    assert torch.equal(before, module(x)) and not before.requires_grad
    module(x).sum().backward()
    with torch.no_grad():
        for p in module.parameters():
            p.sub_(0.1 * p.grad)
    after = view(x)
    assert torch.equal(after, module(x)) and not torch.equal(after, before)  # later steps are seen
    for mine, theirs in zip(module.parameters(), view.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr() and theirs.grad is None
    view.double()  # what is done to the view is done to the view alone
    assert all(p.dtype == torch.float32 for p in module.parameters())
