"""Signed notes of C2SP (c2sp.org/signed-note) with Ed25519, and cosignatures (c2sp.org/tlog-cosignature).

Keys are pinned in advance; a note is read only to be checked against them. Names and key ids are compared as bytes.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.errors import Invalid, NotProven

MAX_NOTE_BYTES = 64 << 10
# At least 16 must be accepted. Of a post-quantum signature, one may take 5 kB.
MAX_SIGNATURES = 64
KEY_ID_BYTES = 4
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
TIME_BYTES = 8
MAX_TIME = (1 << 63) - 1
_DASH = "\u2014"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")

Sign = Callable[[bytes], bytes]
"""Signs a message with an Ed25519 key: 64 bytes (RFC 8032)."""


class KeyKind(IntEnum):
    """What a key's signature says, as the byte that its id is made with."""

    NOTE = 0x01  # Ed25519 over the text
    COSIGNATURE = 0x04  # Ed25519 over the time and the text: a witness


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name (`vkey`).

    Raises:
        Invalid: Not a name, not a key.
    """

    name: str
    kind: KeyKind
    public: bytes

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise Invalid("vkey", "has no usable name", hint="a name has no space, no + and no control character")
        try:
            Ed25519PublicKey.from_public_bytes(self.public)
        except ValueError as bad:
            raise Invalid("vkey", f"the key of {self.name} is not an Ed25519 key") from bad

    @property
    def key_id(self) -> bytes:
        """Return the four bytes that stand before its signatures."""
        message = self.name.encode() + b"\n" + bytes((self.kind,)) + self.public
        return hashlib.sha256(message).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes((self.kind,)) + self.public).decode()}"

    def verifies(self, text: str, blob: bytes) -> bool:
        """Tell whether `blob`, what stands behind the key id, is this key's signature of `text`."""
        message = text.encode()
        if self.kind is KeyKind.COSIGNATURE:
            at = int.from_bytes(blob[:TIME_BYTES], "big")
            # After the time there must be a signature; its length is judged below.
            if len(blob) <= TIME_BYTES or at > MAX_TIME:
                return False
            message, blob = _cosigned(text, at), blob[TIME_BYTES:]
        if len(blob) != SIGNATURE_BYTES:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(blob, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: a name, and the key id with what the key made."""

    name: str
    key_id: bytes
    blob: bytes

    def __str__(self) -> str:
        return f"{_DASH} {self.name} {base64.b64encode(self.key_id + self.blob).decode()}\n"

    def is_of(self, key: VerifierKey) -> bool:
        """Tell whether it says to be made by this key."""
        return (self.name, self.key_id) == (key.name, key.key_id)

    @property
    def at(self) -> int:
        """The Unix time that a cosignature states."""
        return int.from_bytes(self.blob[:TIME_BYTES], "big")


@dataclass(frozen=True, slots=True)
class Note:
    """A text, whose last character is a newline, and its signatures, checked or not."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(str(one) for one in self.signatures)


def is_key_name(name: str) -> bool:
    """Tell whether it may name a key: not empty, no Unicode space, no plus sign."""
    return bool(name) and name.isprintable() and not any(one.isspace() or one == "+" for one in name)


def parse_vkey(text: str) -> VerifierKey:
    """Read `NAME+HEX+BASE64`, as `str` of a key writes it.

    Raises:
        Invalid: Anything else, an id that is not the key's, or another kind of key.
    """
    name, _, rest = text.partition("+")
    hex_id, _, encoded = rest.partition("+")
    try:
        data = unbase64(encoded)
    except NotProven as bad:
        raise Invalid("vkey", f"{text!r} is not NAME+ID+KEY") from bad
    try:
        kind = KeyKind(data[0])
    except (IndexError, ValueError) as unknown:
        raise Invalid(
            "vkey", f"the key of {name!r} is of a kind that is not known", hint="use Ed25519 (01, or 04 of a witness)"
        ) from unknown
    if len(data) != 1 + PUBLIC_KEY_BYTES:
        raise Invalid("vkey", f"the key of {name!r} has not 32 bytes")
    key = VerifierKey(name, kind, data[1:])
    if hex_id != key.key_id.hex():
        raise Invalid("vkey", f"the key of {name!r} has the id {key.key_id.hex()}, not {hex_id!r}")
    return key


def parse_note(data: bytes) -> Note:
    """Read a signed note. Checks no signature.

    Raises:
        NotProven: Not in the one form that a note has.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise NotProven(f"a note has at most {MAX_NOTE_BYTES} bytes")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise NotProven("a note is not UTF-8") from bad
    if _CONTROL.search(whole):
        raise NotProven("a note holds a control character")
    # The text may hold empty lines itself: the signatures stand behind the last one.
    text, gap, below = whole.rpartition("\n\n")
    if not gap or not text or not below:
        raise NotProven("a note has no signatures below an empty line")
    return Note(text + "\n", parse_signatures(below))


def parse_signatures(lines: str) -> tuple[NoteSignature, ...]:
    """Read signature lines, each with its newline; at least one. Raises NotProven."""
    if not lines.endswith("\n"):
        raise NotProven("the last signature line does not end")
    found = lines[:-1].split("\n")
    if len(found) > MAX_SIGNATURES:
        raise NotProven(f"a note has at most {MAX_SIGNATURES} signatures")
    return tuple(_signature(line) for line in found)


def check_note(note: Note, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
    """Return those of `keys` that signed the note; signatures of others are passed over.

    Raises:
        NotProven: A key's signature is wrong, whatever the others say; or none of them signed.
    """
    signed: list[VerifierKey] = []
    known = tuple(keys)
    for signature in note.signatures:
        for key in known:
            if signature.is_of(key):
                if not key.verifies(note.text, signature.blob):
                    raise NotProven(f"the signature of {key.name} is wrong")
                if key not in signed:
                    signed.append(key)
    if not signed:
        names = ", ".join(dict.fromkeys(key.name for key in known)) or "anybody"
        raise NotProven(f"the note is not signed by {names}")
    return tuple(signed)


def merged(note: Note, signatures: Iterable[NoteSignature]) -> Note:
    """Return the note with more signatures, each in the place of an older one by the same key. Checks none."""
    newer = {(one.name, one.key_id): one for one in signatures}
    kept = tuple(one for one in note.signatures if (one.name, one.key_id) not in newer)
    return Note(note.text, (*kept, *newer.values()))


def sign_note(text: str, key: VerifierKey, sign: Sign) -> NoteSignature:
    """Sign a text. Raises NotProven if what comes back is not the key's signature."""
    return _made(text, key, sign(text.encode()))


def cosign_note(text: str, key: VerifierKey, sign: Sign, at: int) -> NoteSignature:
    """Cosign a checkpoint's text as of Unix time `at`. Raises NotProven as `sign_note`."""
    return _made(text, key, at.to_bytes(TIME_BYTES, "big") + sign(_cosigned(text, at)))


def unbase64(text: str) -> bytes:
    """Decode standard base64 in its one spelling (RFC 4648 §4). Raises NotProven."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as bad:
        raise NotProven("a line is not base64") from bad
    if base64.b64encode(data).decode("ascii") != text:
        raise NotProven("a line is base64 in another than its one spelling")
    return data


def unbase64_hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    """Decode lines that hold a SHA-256 hash each. Raises NotProven."""
    hashes = tuple(unbase64(line) for line in lines)
    if any(len(one) != hashlib.sha256().digest_size for one in hashes):
        raise NotProven("a hash has not 32 bytes")
    return hashes


def _made(text: str, key: VerifierKey, blob: bytes) -> NoteSignature:
    # A key store can return a wrong signature; nobody else must be the first to see that.
    if not key.verifies(text, blob):
        raise NotProven(f"the signature that was made for {key.name} is wrong")
    return NoteSignature(key.name, key.key_id, blob)


def _cosigned(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def _signature(line: str) -> NoteSignature:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != _DASH or not is_key_name(name):
        raise NotProven("a signature line is not a dash, a name and base64")
    data = unbase64(encoded)
    if len(data) <= KEY_ID_BYTES:
        raise NotProven(f"the signature of {name} is empty")
    return NoteSignature(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])
