"""Teacher, one-class bottleneck, student and scale head (arXiv 2503.13828), in plain PyTorch.

At input size S a feature map of scale k = 1, 2, 3 has side S/4, S/8, S/16. The student is "full",
as published, or "slim": then bottleneck and student have half the channels inside, and of each of
the student's maps a 1x1 convolution makes one with the teacher's channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scrd_fast.model.backbones import backbone_of, divisor_of
from scrd_fast.model.resnet import conv3x3, init_weights, make_stage
from scrd_fast.torch_state import own_state, seeded

Scales = tuple[Tensor, Tensor, Tensor]


class Features(NamedTuple):
    """What one pass gives: three teacher maps, three student maps, (N, 3) scale weights."""

    teacher: Scales
    student: Scales
    scale_weights: Tensor


class Teacher(nn.Module):
    """ResNet stem and stages 1 to 3; always in eval mode, its weights frozen by default."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        shape = backbone_of(backbone)
        c1, c2, _ = shape.channels
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = make_stage(64, 64, shape.stages[0], shape, "keep")
        self.layer2 = make_stage(c1, 128, shape.stages[1], shape, "down")
        self.layer3 = make_stage(c2, 256, shape.stages[2], shape, "down")
        init_weights(self)

    def forward(self, images: Tensor) -> Scales:
        """images (N, 3, S, S), normalised -> features, finest scale first."""
        # The same before and after the ReLU, which then has a quarter of the values to see to.
        x = self.relu(self.maxpool(self.bn1(self.conv1(images))))
        f1 = self.layer1(x)
        f2 = self.layer2(f1)
        return f1, f2, self.layer3(f2)


class OneClassBottleneck(nn.Module):
    """Brings the three scales to S/16, concatenates them and compresses to S/32."""

    def __init__(self, backbone: str, student: str = "full") -> None:
        super().__init__()
        shape, divisor = backbone_of(backbone), divisor_of(student)
        c1, c2, c3 = shape.channels
        n2, n3 = c2 // divisor, c3 // divisor
        self.conv1, self.bn1 = conv3x3(c1, n2, stride=2), nn.BatchNorm2d(n2)
        self.conv2, self.bn2 = conv3x3(n2, n3, stride=2), nn.BatchNorm2d(n3)
        self.conv3, self.bn3 = conv3x3(c2, n3, stride=2), nn.BatchNorm2d(n3)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = make_stage(
            n3 + n3 + c3, 512 // divisor, shape.bottleneck_blocks, shape, "down")
        init_weights(self)

    def forward(self, features: Scales) -> Tensor:
        """Three teacher maps -> (N, 512 * expansion, S/32, S/32); half the channels if slim."""
        f1, f2, f3 = features
        fine = self.relu(self.bn1(self.conv1(f1)))
        fine = self.relu(self.bn2(self.conv2(fine)))
        middle = self.relu(self.bn3(self.conv3(f2)))
        return self.blocks(torch.cat([fine, middle, f3], dim=1))


class Student(nn.Module):
    """The ResNet mirrored: rebuilds the teacher's three maps from the bottleneck.

    The slim one's projections, finest scale first, end in a ReLU, as the teacher's stages do. The
    teacher's features are not negative, and to such the cosine of max(g, 0) is never smaller than
    that of g where that is positive; and without it all that half the channels could rebuild would
    lie in a space of half the dimensions. A BatchNorm before it would only scale and shift, as the
    weights and the bias do, and the cosine sees no scale.
    """

    def __init__(self, backbone: str, student: str = "full") -> None:
        super().__init__()
        shape, divisor = backbone_of(backbone), divisor_of(student)
        n1, n2, n3 = (c // divisor for c in shape.channels)
        self.layer1 = make_stage(
            512 // divisor * shape.expansion, 256 // divisor, shape.stages[0], shape, "up")
        self.layer2 = make_stage(n3, 128 // divisor, shape.stages[1], shape, "up")
        self.layer3 = make_stage(n2, 64 // divisor, shape.stages[2], shape, "up")
        self.projections = nn.ModuleList() if divisor == 1 else nn.ModuleList(
            nn.Conv2d(n, c, 1) for n, c in zip((n1, n2, n3), shape.channels, strict=True))
        init_weights(self)

    def forward(self, x: Tensor) -> Scales:
        """The bottleneck's (N, C, S/32, S/32) -> features, finest scale first."""
        g3 = self.layer1(x)
        g2 = self.layer2(g3)
        g1 = self.layer3(g2)
        if not self.projections:
            return g1, g2, g3
        f1, f2, f3 = (torch.relu(project(g))
                      for project, g in zip(self.projections, (g1, g2, g3), strict=True))
        return f1, f2, f3


class ScaleHead(nn.Module):
    """Global max pool, linear layer, softmax: three weights per image that sum to 1."""

    def __init__(self, backbone: str, student: str = "full") -> None:
        super().__init__()
        inputs = 512 // divisor_of(student) * backbone_of(backbone).expansion
        self.linear = nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3)."""
        return torch.softmax(self.linear(x.amax(dim=(2, 3))), dim=1)


class SCRD(nn.Module):
    """The whole network; `train()` leaves the teacher in eval mode."""

    def __init__(self, backbone: str, student: str = "full") -> None:
        super().__init__()
        self.backbone = backbone
        self.teacher = Teacher(backbone).requires_grad_(False).eval()
        self.bottleneck = OneClassBottleneck(backbone, student)
        self.student = Student(backbone, student)
        self.scale_head = ScaleHead(backbone, student)

    def train(self, mode: bool = True) -> "SCRD":
        super().train(mode)
        self.teacher.eval()
        return self

    def student_pass(self, teacher: Scales) -> tuple[Scales, Tensor]:
        """Teacher maps -> student maps and (N, 3) scale weights."""
        compressed = self.bottleneck(teacher)
        return self.student(compressed), self.scale_head(compressed)

    def forward(self, images: Tensor) -> Features:
        """images (N, 3, S, S), normalised, S divisible by 32."""
        teacher = self.teacher(images)
        student, scale_weights = self.student_pass(teacher)
        return Features(teacher, student, scale_weights)


def new_model(backbone: str, seed: int, student: str = "full") -> SCRD:
    """A float32 model on the CPU with the random weights of a seed."""
    with own_state(), seeded(seed):
        return SCRD(backbone, student)


def model_without_weights(backbone: str, student: str = "full") -> SCRD:
    """A float32 model on the CPU whose weights are still to be loaded; nothing random is drawn."""
    with own_state():
        with torch.device("meta"):
            model = SCRD(backbone, student)
        # As Module.to_empty does, which imports SymPy: half a second of each process.
        model.load_state_dict({name: torch.empty(value.shape, dtype=value.dtype, device="cpu")
                               for name, value in model.state_dict().items()}, assign=True)
        return model
