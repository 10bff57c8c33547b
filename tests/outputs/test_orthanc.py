"""What the command line writes, sent to a real receiver: it takes all objects, lists them in their
sources' studies, shows them and gives them back."""

import io
import shutil
import subprocess
from collections import Counter

import cv2
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("highdicom", reason="highdicom writes the objects")

import pydicom

from tests.cli.commands import main
from tests.outputs.dicom_series import CR, calibrate, has_tool, write_enhanced, write_series
from tests.support.orthanc import ORTHANC, ORTHANC_MISSING, get, get_json, run_orthanc

pytestmark = [
    pytest.mark.skipif(ORTHANC is None, reason=ORTHANC_MISSING),
    pytest.mark.skipif(not has_tool("storescu"), reason="storescu (dcmtk) is not installed")]
STUDIES = {"ct": "1.2.3.5", "mr": "1.2.3.6"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The ports of a server of its own: of HTTP and of DICOM."""
    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as ports:
        yield ports


@pytest.fixture(scope="module")
def files(small_file, tmp_path_factory):
    """The files of a CT series, an MR series, an enhanced MR and an X-ray, and of what scoring them
    on the command line wrote."""
    root = tmp_path_factory.mktemp("files")
    sources, made = root / "sources", root / "made"
    write_series(sources / "ct", "oblique", 3, StudyInstanceUID=STUDIES["ct"])
    write_series(sources / "mr", "sagittal", 3, like="MR_small.dcm", StudyInstanceUID=STUDIES["mr"],
                 SeriesInstanceUID=f"{STUDIES['mr']}.1")
    shutil.copy(write_enhanced(root / "enhanced"), sources)
    shutil.copy(CR, sources / "x-ray")
    assert main("score", calibrate(small_file, root), sources, "--dicom", made, "--out",
                root / "scores.csv", "--quiet") == 0
    return [path for path in sorted(sources.rglob("*")) if path.is_file()], sorted(made.iterdir())


@pytest.fixture(scope="module")
def received(orthanc, files):
    """The port of the server that has all files, sent by DICOM, and its instances by UID."""
    sources, made = files
    places = {path.parent for path in [*sources, *made]}
    command = ["storescu", "-R", "+sd", "-aec", "ORTHANC", "127.0.0.1", str(orthanc[1])]
    done = subprocess.run([*command, *map(str, places)], capture_output=True, text=True,
                          check=False, timeout=60)
    # Its exit code says little; what is there does.
    assert get_json(orthanc[0], "/statistics")["CountInstances"] == len(sources) + len(made), (
        done.stdout + done.stderr)
    return orthanc[0], {each["MainDicomTags"]["SOPInstanceUID"]: each["ID"]
                        for each in get_json(orthanc[0], "/instances?expand")}


def test_each_object_lies_in_the_study_of_its_source(files, received):
    """The objects of a kind are a series; of the X-ray there is no parametric map."""
    port, instances = received
    listed = {}
    for study in get_json(port, "/studies?expand"):
        told = [get_json(port, f"/series/{each}") for each in study["Series"]]
        listed[study["MainDicomTags"]["StudyInstanceUID"]] = sorted(
            (each["MainDicomTags"]["Modality"], len(each["Instances"])) for each in told)
        for each in told:
            assert each["ParentStudy"] == study["ID"]
    study_of = {path.name: pydicom.dcmread(path).StudyInstanceUID for path in files[0]}
    for study, series in ((STUDIES["ct"], [("CT", 3), ("OT", 1), ("OT", 3)]),
                          (STUDIES["mr"], [("MR", 3), ("OT", 1), ("OT", 3)]),
                          (study_of["enhanced.dcm"], [("MR", 1), ("OT", 1), ("OT", 5)]),
                          (study_of["x-ray"], [("CR", 1), ("OT", 1)])):
        assert listed.pop(study) == [*series, ("SEG", 2), ("SR", 1)]
    assert listed == {}
    assert len(instances) == 3 + 3 + 1 + 1 + 7 + 7 + 9 + 4


def test_what_is_given_back_is_what_was_sent(files, received):
    port, instances = received
    for path in [*files[0], *files[1]]:
        sent = pydicom.dcmread(path)
        back = pydicom.dcmread(io.BytesIO(get(port, f"/instances/{instances[sent.SOPInstanceUID]}"
                                                    "/file")))
        assert back == sent, path.name


@pytest.mark.slow
def test_the_secondary_capture_is_shown(files, received):
    port, instances = received
    count = Counter()
    for path in files[1]:
        made = pydicom.dcmread(path)
        if made.SOPClassUID == SECONDARY_CAPTURE:
            shown = get(port, f"/instances/{instances[made.SOPInstanceUID]}/preview")
            assert shown.startswith(b"\x89PNG")
            pixels = cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            np.testing.assert_array_equal(pixels, made.pixel_array)
            count[made.StudyInstanceUID] += 1
    assert sorted(count.values()) == [1, 3, 3, 5]
