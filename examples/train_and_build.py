"""From a folder of normal images to a teacher, a model and an engine file.

    python examples/train_and_build.py normals/ held-out-normals/ results/
"""

import argparse
from pathlib import Path

import scrd_fast

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("normals", help="folder of normal images that the model learns from")
parser.add_argument("held_out", help="folder of normal images of other patients")
parser.add_argument("results", type=Path, help="folder for the files that are written")
parser.add_argument("--size", type=int, default=128, help="side of the network's input, pixels")
parser.add_argument("--steps", type=int, default=2000, help="of each of the two trainings")
parser.add_argument("--precision", default="auto", help="auto: the fastest that keeps the scores")
given = parser.parse_args()
model = {"backbone": "resnet18", "input_size": given.size}  # the same for teacher and student

# The teacher learns what textures and shapes are. (teacher="imagenet" below would replace it.)
teacher = scrd_fast.pretrain_teacher(given.normals, given.results / "teacher.safetensors",
                                     steps=given.steps, **model)

# The student learns to agree with it on normal images, and to disagree where noise was added.
# channels="shared" is for grey images: the same noise in red, green and blue.
noise = scrd_fast.NoiseConfig(strength=0.8, max_share=0.25, channels="shared")
trained = scrd_fast.train(given.normals, given.results / "model.safetensors", teacher=teacher,
                          validation=given.held_out, noise=noise, steps=given.steps, **model)
print("AUROC against synthetic anomalies:", trained.metrics["auroc_synthesised"])

# The engine is compiled for this machine; the images show which precisions keep the scores.
engine = scrd_fast.build_engine(given.results / "model.safetensors", images=given.held_out,
                                precision=given.precision)
print(f"{engine.path}: computes in {engine.manifest.precision}")
