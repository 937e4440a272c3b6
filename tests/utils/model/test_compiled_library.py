"""C++ compiled on first use: kept, made anew where it is damaged, and errors that say what to do."""

import multiprocessing

import pytest

from utils.model.compiled_library import CompileError, _found, compiled_library

ADDS = 'extern "C" int add(int a, int b) { return a + b; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "kept"))
    _found.cache_clear()
    path = tmp_path / "adds.cpp"
    path.write_text(ADDS)
    yield path
    _found.cache_clear()


def kept(source):
    return sorted((source.parent / "kept").iterdir())


def test_is_compiled_once_for_each_source(source):
    assert compiled_library(source).add(2, 3) == 5
    (library,) = kept(source)
    made = library.stat().st_mtime_ns
    _found.cache_clear()  # as another process
    assert compiled_library(source).add(2, 3) == 5
    assert kept(source) == [library] and library.stat().st_mtime_ns == made
    source.write_text(ADDS.replace("a + b", "a * b"))
    _found.cache_clear()
    assert compiled_library(source).add(2, 3) == 6
    assert len(kept(source)) == 2


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_damaged_library_is_made_anew(source, size):
    subject = multiprocessing.get_context("spawn").Process(target=compiled_library, args=(source,))
    subject.start()  # elsewhere: what this process has loaded must not be written over
    subject.join()
    (library,) = kept(source)
    library.write_bytes(library.read_bytes()[:size])  # whoever loads that is killed
    assert compiled_library(source).add(2, 3) == 5


def test_processes_at_once(source):
    """As the ranks of a first training: each may compile, and what is kept is whole."""
    subjects = [
        multiprocessing.get_context("spawn").Process(target=compiled_library, args=(source,))
        for _ in range(2)
    ]
    for subject in subjects:
        subject.start()
    for subject in subjects:
        subject.join()
    assert [subject.exitcode for subject in subjects] == [0] * 2
    assert len(kept(source)) == 1 and compiled_library(source).add(2, 3) == 5


def test_a_mistake_in_the_source_is_told_in_one_line(source):
    source.write_text("int add(int a { return a; }\n")
    with pytest.raises(CompileError, match=r"failed: .*adds.cpp:1:\d+: error: ") as error:
        compiled_library(source)
    assert "\n" not in str(error.value) and kept(source) == []


def test_no_compiler(source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match="CXX names no-such-compiler, which is not installed"):
        compiled_library(source)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    _found.cache_clear()
    with pytest.raises(CompileError, match="no C\\+\\+ compiler is installed"):
        compiled_library(source)


def test_what_cannot_be_loaded_is_not_kept_nor_tried_again(source):
    source.write_text('extern "C" int missing(); extern "C" int add() { return missing(); }\n')
    flags = ("-O1",)
    for _ in range(2):
        with pytest.raises(CompileError, match="undefined symbol: missing"):
            compiled_library(source, flags)
    assert kept(source) == []
    source.write_text(ADDS)
    with pytest.raises(CompileError, match="missing"):
        compiled_library(source, flags)


def test_a_folder_that_cannot_be_written(source, monkeypatch):
    (source.parent / "file").write_text("")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(source.parent / "file" / "inside"))
    with pytest.raises(CompileError, match=r"cannot be compiled and loaded: .*file"):
        compiled_library(source)
