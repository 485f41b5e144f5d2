"""Pack Tiny Shakespeare, given as plain text, into data/tinyshakespeare.txt.gz; see data/README.md."""

import gzip
import hashlib
import sys
from pathlib import Path

TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TARGET = Path(__file__).with_name("tinyshakespeare.txt.gz")


def main(source: str) -> None:
    """Check the text, compress it without a time stamp, say the digest of the archive."""
    text = Path(source).read_bytes()
    if hashlib.sha256(text).hexdigest() != TEXT_SHA256:
        raise SystemExit(f"{source} is not the Tiny Shakespeare of karpathy/char-rnn: its SHA-256 differs")
    TARGET.write_bytes(gzip.compress(text, 9, mtime=0))
    print(TARGET.name, TARGET.stat().st_size, hashlib.sha256(TARGET.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])
