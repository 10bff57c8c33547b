"""What is wrong with a node's options is one line; TLS keeps out who shows no certificate."""

import socket

import pytest

from tests.cli.commands import run_here
from tests.serving.dicom.conftest import (
    check_all_arrived_once,
    run_node,
    skip_without_tools,
    wait_for,
    write_study,
)

skip_without_tools()


@pytest.mark.parametrize(("options", "error"), [
    (["--to", "X"], "--to: expected AET@HOST:PORT, got 'X'"),
    (["--aet", "x" * 17], "--aet: expected an AE title of 1 to 16 ASCII characters"),
    (["--host", "0.0.0.0"], "--allow: expected somebody who may send"),
    (["--allow", "A@no such host"], "--allow: expected AET, AET@HOST or AET@NETWORK"),
    (["--objects", "pm,x"], "--objects: expected some of"),
    (["--description", "("], "--description: expected a regular expression"),
    (["--leave-out", "("], "--leave-out: expected a regular expression"),
    (["--peer", "A@b:1"], "--peer: expected --keep with it"),
    (["--tls-cert", "{file}"], "--tls-cert and --tls-key: expected both or none"),
    (["--tls-cert", "{file}", "--tls-key", "{file}"],
     "--tls-cert and --tls-key: expected a certificate and its key in PEM"),
    (["--tls-ca", "{file}"], "--tls-ca: expected --tls-cert or --to-tls with it"),
    (["--to-tls", "--tls-ca", "{file}"], "--tls-ca: expected certificates of an authority in PEM"),
    (["--spool-gigabytes", "inf"], "--spool-gigabytes: expected a number, got inf"),
    (["--spool", "{file}"], "cannot be written: Not a directory"),
    (["--engine", "missing.scrd"], "missing.scrd"),
    (["--port", "1", "--host", "192.0.2.1", "--allow", "A"], "cannot listen on 192.0.2.1, port 1"),
])
def test_bad_options(small_file, tmp_path, options, error):
    options = [each.format(file=small_file) for each in options]
    for name, value in (("--to", "A@127.0.0.1:9"), ("--engine", small_file), ("--port", "0"),
                        ("--spool", tmp_path / "spool")):
        if name not in options:
            options += [name, str(value)]
    done = run_here("dicom-listen", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_status_where_there_is_no_spool(tmp_path):
    for verb in ("dicom-status", "dicom-retry"):
        done = run_here(verb, tmp_path)
        assert done.returncode == 2
        assert "expected the spool of a DICOM node" in done.stderr


@pytest.mark.slow
def test_tls(small_file, archive, certificate, tmp_path):
    sent = write_study(tmp_path / "sent", 31, 2)
    cert, key = map(str, certificate)
    with run_node(small_file, tmp_path / "spool", archive.port, "--tls-cert", cert, "--tls-key",
                  key, "--tls-ca", cert) as node:
        assert node.send(tmp_path / "sent", check=False).returncode != 0
        assert node.send(tmp_path / "sent", check=False,
                         more=("+tla", "-ic")).returncode != 0  # without a certificate
        with socket.create_connection(("127.0.0.1", node.port)):  # says nothing, and stops nobody
            node.send(tmp_path / "sent", more=("+tls", key, cert, "+cf", cert))
        check_all_arrived_once(node, archive, sent)


@pytest.mark.slow
def test_a_destination_of_an_unknown_authority_gets_nothing(small_file, certificate, tmp_path):
    write_study(tmp_path / "sent", 33, 2)
    cert, key = map(str, certificate)
    with run_node(small_file, tmp_path / "second", 9, "--tls-cert", cert, "--tls-key", key, "--aet",
                  "ORTHANC") as second, run_node(
            small_file, tmp_path / "first", second.port, "--to-tls") as first:
        first.send(tmp_path / "sent")
        wait_for(lambda: first.status().trouble, log=first.log)
        assert (first.status().sent, second.status().arriving) == (0, 0)


@pytest.mark.slow
def test_results_go_by_tls(small_file, archive, certificate, tmp_path):
    """From one node to another, which scores none of what is a result itself."""
    sent = write_study(tmp_path / "sent", 32, 2)
    cert, key = map(str, certificate)
    with run_node(small_file, tmp_path / "second", archive.port, "--tls-cert", cert, "--tls-key",
                  key, "--aet", "ORTHANC") as second, run_node(
            small_file, tmp_path / "first", second.port, "--to-tls", "--tls-ca", cert) as first:
        # By the same words that the listener above refuses, which asks for a certificate.
        second.send(tmp_path / "sent", aec="ORTHANC", more=("+tla", "-ic"))
        wait_for(lambda: second.status().done == 1, log=second.log)
        first.send(tmp_path / "sent")
        wait_for(lambda: first.status().done == 1, log=first.log)
        wait_for(lambda: second.status().skipped == 4, log=second.log)
        assert (first.status().sent, second.status().done) == (len(sent) + 3, 1)
    assert archive.count() == len(sent) + 3
