"""Certificates for tests, made with the `openssl` command."""

import pathlib
import subprocess


def openssl(*arguments):
    """Run openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority; `certificate` is its certificate as PEM text."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.key, self.path = self.directory / "ca.key", self.directory / "ca.pem"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", 2, "-subj", "/CN=test authority", "-keyout", self.key, "-out", self.path,
        )  # fmt: skip
        self.certificate = self.path.read_text()

    def sign(self, name):
        """Return a new key and its certificate for localhost, as PEM texts."""
        key, request, certificate, extensions = (
            self.directory / f"{name}.{ending}" for ending in ("key", "csr", "pem", "ext")
        )
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", request, "-CA", self.path, "-CAkey", self.key,
            "-CAcreateserial", "-days", 2, "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return key.read_text(), certificate.read_text()
