"""Rows of a process stay one piece, whatever the order in which devices are told of."""

import itertools
from types import SimpleNamespace

import pytest

from cellclr_jax import devices as sharding


def test_devices_of_a_process_lie_beside_each_other(monkeypatch):
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: list(devices))
    # As on a TPU v5e 4x4, whose torus goes to and fro between hosts.
    hosts = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
    devices = [SimpleNamespace(process_index=host, id=i) for i, host in enumerate(hosts)]
    ordered = sharding.make_mesh(devices)
    assert [host for host, _ in itertools.groupby(d.process_index for d in ordered)] == [0, 1, 2, 3]
    assert sorted(d.id for d in ordered) == list(range(16))


@pytest.mark.parametrize(("cells", "cores", "count"), [(64, 4, 4), (63, 4, 3), (7, 4, 1)])
def test_as_many_cores_as_divide_the_cells(monkeypatch, cells, cores, count):
    told = {}
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(sharding.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(sharding.jax.config, "update", told.__setitem__)
    sharding.use_all_cores(cells)
    assert told == {"jax_num_cpu_devices": count}
