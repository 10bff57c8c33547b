"""torch.export sees the kernels: each launcher is one operator with known output shapes."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.ops.each_impl import slow_interpreted

# In a process of its own: an interpreted kernel has nothing that could be traced.
CODE = """
import json
import torch
from torch import nn
from scrd_fast.kernels.anomaly_map import combine_distances, cosine_distances, tail
from scrd_fast.kernels.contrastive_loss import contrastive_terms
from scrd_fast.kernels.preprocess import preprocess_into
from scrd_fast.spec import ScoringSpec

spec = ScoringSpec(input_size=64, weighting="scale")
maps = [[torch.rand(2, c, s, s) for c, s in ((8, 16), (4, 8), (5, 4))] for _ in range(3)]


class Score(nn.Module):
    tail = tail(spec, (16, 8, 4), torch.device("cpu"))

    def forward(self, teacher, student, weights):
        return combine_distances(cosine_distances(teacher, student), weights, self.tail)


class Loss(nn.Module):
    def forward(self, clean, noisy, student):
        return contrastive_terms(clean, noisy, student)


class Pixels(nn.Module):
    def forward(self, images):
        out = torch.empty(2, 3, 64, 64)
        preprocess_into(images, out, spec.mean, spec.std, 255.0)
        return out


cases = [(Score(), (maps[0], maps[1], torch.ones(2, 3) / 3)), (Loss(), tuple(maps)),
         (Pixels(), (torch.zeros(2, 30, 40, 3, dtype=torch.uint8),))]
for module, arguments in cases:
    program = torch.export.export(module, arguments)
    operators = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    outputs = [list(n.meta["val"].shape) for n in program.graph.output_node().args[0]]
    print(json.dumps([[o for o in operators if o.startswith("scrd_fast.")], outputs]))
"""


@slow_interpreted
@pytest.mark.gpu
def test_exported_programs_hold_the_kernels():
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [["scrd_fast.cosine_distances.default", "scrd_fast.combine_distances.default"],
         [[2, 64, 64], [2], [2]]],
        [["scrd_fast.contrastive_terms.default"], [[2, 2, 3]]],
        [["scrd_fast.preprocess_into.default"], [[2, 3, 64, 64]]],
    ]
