"""A signature's buffers are replaced without keeping the old ones longer than necessary."""

import weakref

import numpy as np
import pytest

from bart_export.bench.measurements import memory_sizes
from bart_export.runtime.buffered_signature import BufferedSignature
from bart_export.runtime.caches import malloc_trim, return_freed_memory
from bart_export.runtime.compiled_model import open_compiled_model, open_model
from bart_export.runtime.sizing import sizing_of

MIB = 1 << 20


def test_one_old_buffer_is_kept_at_a_time(roomy_file, roomy_config):
    sizing = sizing_of(roomy_config, None)
    small, large = (
        sizing.decode(2, length, 1, capacity) for length, capacity in ((8, 9), (60, 60))
    )
    model = open_model(roomy_file, 1, "")
    decoder = BufferedSignature(model, roomy_config, small.name, small.signature)
    decoder.resize(small.sizes)
    replaced, kept = [], []

    def fill(name, old, new):
        replaced.append(weakref.ref(old))
        kept.append(sum(each() is not None for each in replaced))

    decoder.resize(large.sizes, fill)
    assert len(kept) > 8 and set(kept) == {1}


def test_only_the_decoder_in_use_has_buffers(roomy_file, roomy_config):
    engine = open_compiled_model(roomy_file, roomy_config, num_threads=1)
    for beams, decoder in ((1, "decode_single"), (3, "decode"), (1, "decode_single")):
        engine.batch(beams).admit([5] * 9, 20)
        assert set(engine.backend.signatures) == {"encode", decoder}


@pytest.mark.skipif(malloc_trim() is int, reason="needs glibc")
def test_freed_memory_returns_to_the_system():
    np.ones(24 * MIB, np.uint8)  # glibc does not return blocks up to the largest freed so far
    blocks = [np.ones(MIB, np.uint8) for _ in range(64)]
    del blocks[1::2]
    before = memory_sizes()["Anonymous:"]
    return_freed_memory()
    assert before - memory_sizes()["Anonymous:"] > 24 * MIB
