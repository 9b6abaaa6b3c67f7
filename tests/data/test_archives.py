"""An archive is read as the folder that it was made of; what is broken, locked or unsafe in it costs itself only."""

import functools
import io
import json
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from qlora_core.config import DataConfig
from qlora_core.data import archives, prepare
from qlora_core.errors import DataError
from qlora_core.tokens.tokenizer import ChatTokenizer

NOTES = {
    "Caderno/Maré.md": "# Maré\n\nA maré sobe às dez horas da manhã.\n",
    "Caderno/Redes/rede.txt": "A rede seca no cais desde ontem.\n",
    "Caderno/perguntas.jsonl": json.dumps({"prompt": "Quem remenda?", "completion": "A Inês, à tarde."}) + "\n",
}


@pytest.fixture
def read(read):
    """The preparation of an archive with this name and content."""
    return functools.partial(read, max_seq_length=2000, passage_tokens=1000)


def zipped(members: dict[str, str | bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members: dict[str, str | bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            raw = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return file.getvalue()


def sources(prepared) -> list[str]:
    """Where each row came from, from the archive on."""
    found = []
    for row in prepared.train:
        whole = Path(row["source"])
        first = next(at for at, part in enumerate(whole.parts) if Path(part).suffix in (".zip", ".tar", ".tgz", ".gz",
                                                                                      ".bz2", ".xz"))  # fmt: skip
        found.append("/".join(whole.parts[first:]))
    return found


def told(prepared) -> list[tuple[str, str]]:
    return [(Path(each.where).name, each.reason) for each in prepared.report.skipped_files]


FORMS = [
    ("notas.zip", zipped(NOTES)),
    ("notas.tar", tarred(NOTES, "w")),
    ("notas.tar.gz", tarred(NOTES, "w:gz")),
    ("notas.tgz", tarred(NOTES, "w:gz")),
    ("notas.tar.bz2", tarred(NOTES, "w:bz2")),
    ("notas.tar.xz", tarred(NOTES, "w:xz")),
]


@pytest.mark.parametrize(("name", "content"), FORMS, ids=[name for name, _ in FORMS])
def test_members_are_read_as_files_of_a_folder(read, name, content):
    prepared = read(name, content)
    assert sorted(sources(prepared)) == [
        f"{name}/Caderno/Maré.md:3",
        f"{name}/Caderno/Redes/rede.txt:1",
        f"{name}/Caderno/perguntas.jsonl:1",
    ]
    found = {row["text"] for row in prepared.train if "text" in row}
    assert found == {"Maré\nA maré sobe às dez horas da manhã.", "rede\nA rede seca no cais desde ontem."}
    assert told(prepared) == []
    assert prepared.files == (Path(prepared.report.sources[0]),)


def test_what_is_unpacked_is_gone_afterwards(read, tmp_path):
    assert len(read("notas.zip", zipped(NOTES)).train) == 3
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept <= {"train_data.jsonl", "val_data.jsonl", "data_report.json", "manifest.json"}


def test_an_archive_in_a_folder_and_one_that_was_changed(read, tmp_path, tiny_model):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.zip").write_bytes(zipped({"x.md": "A rede seca no cais.\n"}))
    (folder / "b.txt").write_text("A maré sobe às dez.\n", encoding="utf-8")

    def texts() -> list[str]:
        prepared = prepare(DataConfig(data=(str(folder),), val_fraction=0.0), ChatTokenizer(tiny_model))
        return sorted(row["text"].partition("\n")[2] for row in prepared.train)

    assert texts() == ["A maré sobe às dez.", "A rede seca no cais."]
    (folder / "a.zip").write_bytes(zipped({"x.md": "A vela seca no mastro.\n"}))
    assert texts() == ["A maré sobe às dez.", "A vela seca no mastro."]


# Exports -------------------------------------------------------------------------------------------------------------

CHAT = (
    "[11/03/23, 21:02:10] Inês: já remendaste a rede?\r\n[11/03/23, 21:04:11] Zé da Luz: quase\r\n"
    "\u200e[11/03/23, 21:05:00] Inês: \u200e<anexado: 00000003-PHOTO.jpg>\r\n"
)


@pytest.mark.parametrize(
    ("archive", "member"),
    [
        ("WhatsApp Chat - Inês.zip", "_chat.txt"),
        ("WhatsApp Chat with Inês.zip", "WhatsApp Chat with Inês.txt"),
        ("Conversa do WhatsApp com Inês.zip", "Conversa do WhatsApp com Inês.txt"),
    ],
)
def test_a_chat_of_whatsapp_with_its_pictures(read, archive, member):
    media = {f"0000000{n}-PHOTO.jpg": b"\xff\xd8" for n in range(3)} | {"VOZ.opus": b"OggS"}
    prepared = read(archive, zipped({member: CHAT, **media}))
    (row,) = prepared.train
    assert [turn["content"] for turn in row["messages"]] == ["já remendaste a rede?", "quase"]
    assert row["metadata"] == {"title": "Inês"}
    assert row["source"].endswith(f"{archive}/{member}:1-2")
    assert told(prepared) == [(archive, "files in it of kinds that are not read: 3 .jpg, 1 .opus")]


def test_an_export_of_notion_is_an_archive_in_an_archive(read):
    page = "A maré 0123456789abcdef0123456789abcdef.md"
    inner = zipped({page: "# A maré\n\nSobe às dez horas da manhã.\n"})
    prepared = read("Export-1.zip", zipped({"ExportBlock-1-Part-1.zip": inner}, zipfile.ZIP_STORED))
    assert sources(prepared) == [f"Export-1.zip/ExportBlock-1-Part-1.zip/{page}:3"]
    assert prepared.train[0]["text"] == "A maré\nSobe às dez horas da manhã."


def test_an_archive_three_deep_is_named(read):
    deep = zipped({"c.zip": zipped({"b.zip": zipped({"a.txt": "no fundo"})}), "x.txt": "A rede seca no cais."})
    prepared = read("d.zip", deep)
    assert sources(prepared) == ["d.zip/x.txt:1"]
    assert told(prepared) == [("b.zip", "is an archive in an archive in an archive: unpack it first")]


def test_a_split_that_the_archives_name(tmp_path, tiny_model):
    for name, said in (("train.zip", "A rede seca no cais."), ("validation.zip", "A maré sobe às dez.")):
        row = json.dumps({"prompt": "O que se passa?", "completion": said})
        (tmp_path / name).write_bytes(zipped({"rows.jsonl": row}))
    prepared = prepare(
        DataConfig(data=(str(tmp_path / "train.zip"), str(tmp_path / "validation.zip"))), ChatTokenizer(tiny_model)
    )
    assert [row["messages"][1]["content"] for row in prepared.train] == ["A rede seca no cais."]
    assert [row["messages"][1]["content"] for row in prepared.validation] == ["A maré sobe às dez."]


def test_hidden_files_and_those_of_file_managers_are_passed_over(read):
    hidden = ("__MACOSX/._x.txt", ".obsidian/app.json", "notes/.DS_Store", "Thumbs.db")
    prepared = read("n.zip", zipped({"notes/x.txt": "A rede seca no cais.", **dict.fromkeys(hidden, "nada")}))
    assert sources(prepared) == ["n.zip/notes/x.txt:1"]
    assert told(prepared) == []


# Names ---------------------------------------------------------------------------------------------------------------


def named_raw(raw: bytes, flag: int = 0) -> bytes:
    """A zip archive whose one member has these bytes for a name."""
    file = zipped({"?" * len(raw): "A rede seca no cais."}, zipfile.ZIP_STORED)
    return file.replace(b"?" * len(raw), raw)


@pytest.mark.parametrize("encoding", ["utf-8", "cp850"])
def test_names_that_do_not_say_their_encoding(read, encoding):
    prepared = read("n.zip", named_raw("Verão e ões.txt".encode(encoding)))
    assert sources(prepared) == ["n.zip/Verão e ões.txt:1"]


@pytest.mark.parametrize("name", ["../x.txt", "a/../../x.txt", "/etc/x.txt", "C:/x.txt", "..\\x.txt", "a//x.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_out_is_left_out(read, tmp_path, name, kind):
    members = {"b/rede.txt": "A rede seca no cais.", name: "mau"}
    content = zipped(members) if kind == "zip" else tarred(members, "w")
    prepared = read(f"n.{kind}", content)
    assert sources(prepared) == [f"n.{kind}/b/rede.txt:1"]
    assert told(prepared) == [(f"n.{kind}", "a name in it leads out of the archive: left out")]
    assert not list(tmp_path.parent.glob("x.txt"))


def test_links_are_not_followed(read, tmp_path):
    (tmp_path / "secret.txt").write_text("segredo", encoding="utf-8")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"a{kind.decode()}.txt")
            info.type, info.linkname = kind, str(tmp_path / "secret.txt")
            archive.addfile(info)
        info = tarfile.TarInfo("b.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"rede"))
    prepared = read("n.tar", file.getvalue())
    assert sources(prepared) == ["n.tar/b.txt:1"]
    assert [reason for _, reason in told(prepared)] == [
        "is a link or no regular file, which is not followed in an archive"
    ] * 2
    link = zipfile.ZipInfo("l.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.txt"))
        archive.writestr("b.txt", "rede")
    assert told(read("n.zip", file.getvalue())) == [("l.txt", "is a link, which is not followed in an archive")]


# Damage and bombs ----------------------------------------------------------------------------------------------------


def test_a_damaged_member_costs_itself_only(read):
    content = bytearray(zipped({"a.txt": "A rede seca no cais.", "b.txt": "A maré sobe às dez."}, zipfile.ZIP_STORED))
    content[content.index(b"rede")] ^= 0xFF
    prepared = read("n.zip", bytes(content))
    assert sources(prepared) == ["n.zip/b.txt:1"]
    ((name, reason),) = told(prepared)
    assert name == "a.txt"
    assert reason.startswith("cannot be unpacked: Bad CRC-32")


def test_a_locked_member_is_named(read):
    content = bytearray(zipped({"a.txt": "A rede seca no cais.", "b.txt": "A maré sobe às dez."}))
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    content[6] |= 1
    prepared = read("n.zip", bytes(content))
    assert sources(prepared) == ["n.zip/b.txt:1"]
    assert told(prepared) == [("a.txt", "is locked with a password: unpack it first")]


def test_a_way_of_packing_that_is_not_read_is_named(read):
    content = bytearray(zipped({"a.txt": "A rede seca no cais.", "b.txt": "A maré sobe às dez."}))
    content[content.index(b"PK\x01\x02") + 10] = 9  # Deflate64, which Explorer takes for large files
    assert told(read("n.zip", bytes(content))) == [
        ("a.txt", "is packed in a way that is not read (number 9 of the zip format): unpack it first")
    ]


@pytest.mark.parametrize("name", ["n.zip", "n.tar", "n.tar.gz", "n.tgz", "n.tar.xz"])
@pytest.mark.parametrize(
    "content", [b"", b"no archive at all", b"PK\x03\x04 and no more", bytes(2000), b"\x1f\x8b\x08"]
)
def test_what_is_no_archive_is_refused_in_a_line(read, name, content):
    with pytest.raises(DataError) as error:
        read(name, content)
    lines = str(error.value).splitlines()
    assert f"{name}: " in lines[1]
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_that_breaks_off_gives_what_comes_before(read, mode):
    noise = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(60_000))
    whole = tarred({"a.txt": "A rede seca no cais.", "b.txt": noise, "c.txt": "A maré sobe às dez."}, mode)
    prepared = read("n.tar" + ("" if mode == "w" else f".{mode[2:]}"), whole[: len(whole) // 2])
    assert [source.partition("/")[2] for source in sources(prepared)] == ["a.txt:1"]
    assert any("breaks off behind b.txt" in reason for _, reason in told(prepared))
    assert any(name == "b.txt" and "cannot be unpacked" in reason for name, reason in told(prepared))


def test_a_damaged_header_of_a_tar_is_no_end(read):
    content = bytearray(tarred({"a.txt": "A rede seca no cais.", "b.txt": "A maré sobe às dez."}, "w"))
    content[1024 + 148] ^= 0xFF  # the checksum of the second header
    prepared = read("n.tar", bytes(content))
    assert sources(prepared) == ["n.tar/a.txt:1"]
    ((name, reason),) = told(prepared)
    assert name == "n.tar"
    assert reason.startswith("breaks off behind a.txt")


def test_bombs_are_left_out(read, monkeypatch):
    monkeypatch.setattr(archives, "PLAIN_BYTES", 1 << 20)
    zeros = bytes(8 << 20)
    prepared = read("n.zip", zipped({"a.txt": "A rede seca no cais.", "b.txt": zeros}))
    assert sources(prepared) == ["n.zip/a.txt:1"]
    assert told(prepared) == [("b.txt", "unpacks to more than 200 times its size, as no text does: left out")]
    prepared = read("n.tar.gz", tarred({"a.txt": "A rede seca no cais.", "b.jpg": zeros, "c.txt": "mar"}, "w:gz"))
    assert [source.partition("/")[2] for source in sources(prepared)] == ["a.txt:1"]
    assert any("unpacks to more than 200 times its size" in reason for _, reason in told(prepared))


def test_an_archive_may_not_unpack_to_more_than_there_is_room_for(read, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 30)
    prepared = read("n.zip", zipped({"a.txt": "A rede seca no cais.", "b.txt": "A maré sobe às dez."}))
    assert sources(prepared) == ["n.zip/a.txt:1"]
    ((name, reason),) = told(prepared)
    assert name == "b.txt"
    assert reason.startswith("is left out: the archive unpacks to more than")


def test_an_archive_of_too_many_files_is_refused(read, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(DataError, match="has more than 3 files"):
        read("n.zip", zipped({f"{n}.txt": "rede" for n in range(4)}))


@pytest.mark.parametrize(("name", "content"), FORMS, ids=[name for name, _ in FORMS])
def test_whatever_is_damaged_nothing_is_raised_and_something_is_said(read, name, content):
    rng = random.Random(name)
    for _ in range(25):
        broken = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 30))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        broken = broken[: rng.choice((len(broken), rng.randrange(len(broken))))]
        said = 0
        try:
            prepared = read(name, bytes(broken))
            said = prepared.report.skipped_files.count + prepared.report.rejected.count
            said += len(prepared.train) == 3
        except DataError as error:
            said = len(str(error).splitlines()) - 1
        assert said


def test_an_empty_archive_is_named(read):
    with pytest.raises(DataError, match=r"n\.zip: holds no files"):
        read("n.zip", zipped({}))


def test_of_two_members_of_one_name_the_later_is_read(read):
    content = zipped({"a.txt": "A rede seca no cais.", "b.txt": "A maré sobe às dez."}).replace(b"b.txt", b"a.txt")
    prepared = read("n.zip", content)
    assert [row["text"] for row in prepared.train] == ["a\nA maré sobe às dez."]
    assert told(prepared) == [("a.txt", "stands in the archive twice: the later one is read")]


def test_documents_that_are_archives_by_nature_stay_documents(read):
    assert archives.form_of(Path("x.docx")) not in archives.ARCHIVES
    with pytest.raises(DataError, match=r"book\.epub: .*cannot be read as \.epub"):
        read("book.epub", zipped(NOTES))


def test_a_sheet_of_facts_in_an_archive_is_named(read):
    prepared = read("n.zip", zipped({"facts.jsonl": "{}", "a.txt": "A rede seca no cais."}))
    assert told(prepared) == [("facts.jsonl", "a sheet of facts in an archive is not read: unpack it")]
