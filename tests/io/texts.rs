//! Documents out of text files.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lacuna::io::{Lines, Split, TextOptions, Texts};
use lacuna::{Error, Result};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

use super::support::write;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn options(split: Split) -> TextOptions {
    TextOptions { split, ..TextOptions::default() }
}

fn read_all(paths: &[PathBuf], options: TextOptions) -> Result<Vec<String>> {
    Texts::open(paths, options)?.collect()
}

/// The documents of one file of this name and content.
fn read(name: &str, content: impl AsRef<[u8]>, options: TextOptions) -> Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), name, content);
    read_all(&[dir.path().join(name)], options)
}

#[track_caller]
fn refused(name: &str, content: impl AsRef<[u8]>, options: TextOptions, words: &[&str]) {
    let error = read(name, content, options).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Input { .. } | Error::Io { .. }), "{error:?}");
    for word in words.iter().chain(&[name]) {
        assert!(message.contains(word), "{word:?} is not in {message}");
    }
}

#[test]
fn a_plain_text_is_one_document_as_it_is() {
    let text = "\u{feff}First\r\n\n  line — é\n";
    assert_eq!(read("a.txt", text, options(Split::Document)).unwrap(), [&text[3..]]);
    assert_eq!(read("a.txt", "", options(Split::Document)).unwrap(), Vec::<String>::new());
}

#[test]
fn a_plain_text_is_split_at_lines_or_blank_lines() {
    let text = "\u{feff}a\r\n\n  \nb c\nd\n\n\n\ne";
    assert_eq!(read("a.txt", text, options(Split::Lines)).unwrap(), ["a", "b c", "d", "e"]);
    assert_eq!(read("a.txt", text, options(Split::BlankLines)).unwrap(), ["a", "b c\nd", "e"]);
    for split in [Split::Lines, Split::BlankLines] {
        assert!(read("a.txt", " \n\n", options(split)).unwrap().is_empty());
    }
}

#[test]
fn json_lines_give_the_field_asked_for() {
    let text = "{\"text\": \"a\\nb\", \"x\": 1}\n\n{\"x\": null, \"text\": \"\"}\r\n{\"text\": \"\u{e9}\"}";
    for name in ["a.jsonl", "A.NDJSON"] {
        assert_eq!(read(name, text, TextOptions::default()).unwrap(), ["a\nb", "é"]);
    }
    let field = TextOptions { field: "body".into(), ..TextOptions::default() };
    assert_eq!(read("a.jsonl", "{\"body\": \"b\", \"text\": 7}", field).unwrap(), ["b"]);
}

#[test]
fn packed_files_are_read_like_plain_ones() {
    let (text, json) = ("one\n\ntwo\n\n".repeat(50_000), "{\"text\": \"x\"}\n".repeat(1000));
    for (ending, pack) in [(".gz", gzip as fn(&[u8]) -> Vec<u8>), (".zst", zstd)] {
        let packed = pack(text.as_bytes());
        assert_eq!(read(&format!("a.txt{ending}"), &packed, options(Split::Document)).unwrap(), [&*text]);
        let lines = read(&format!("a.txt{ending}"), &packed, options(Split::BlankLines)).unwrap();
        assert_eq!((lines.len(), &*lines[99_999]), (100_000, "two"));
        let packed = [pack(json.as_bytes()), pack(json.as_bytes())].concat();
        let documents = read(&format!("a.jsonl{ending}"), packed, TextOptions::default()).unwrap();
        assert_eq!(documents.len(), 2000, "members one after the other");
    }
}

#[test]
fn files_follow_one_another_and_bytes_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", "one");
    write(dir.path(), "b.jsonl.gz", gzip(b"{\"text\": \"two\"}"));
    rows(
        &dir.path().join("c.parquet"),
        &[Some("three")],
        Compression::UNCOMPRESSED,
        WriterVersion::PARQUET_1_0,
    );
    let paths: Vec<PathBuf> =
        ["a.txt", "b.jsonl.gz", "c.parquet"].iter().map(|n| dir.path().join(n)).collect();
    let mut texts = Texts::open(&paths, TextOptions::default()).unwrap();
    let size: u64 = paths.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum();
    let read = texts.read();
    assert_eq!((texts.size(), read.load(Ordering::Relaxed)), (Some(size), 0));
    let documents: Result<Vec<String>> = texts.by_ref().collect();
    assert_eq!(documents.unwrap(), ["one", "two", "three"]);
    assert_eq!(read.load(Ordering::Relaxed), size);
}

#[test]
fn bad_json_lines_are_named() {
    let plain = TextOptions::default;
    refused("a.jsonl", "{\"text\": \"a\"}\n\n[1]\n", plain(), &["a.jsonl line 3", "a JSON object"]);
    refused("a.jsonl", "{\"text\": \"a\"\n", plain(), &["line 1", "a JSON object"]);
    refused("a.jsonl", "{\"text\": 7}", plain(), &["line 1", "`text`", "expected a string, got 7"]);
    refused("a.jsonl", "{\"text\": null}", plain(), &["`text`", "got null"]);
    refused("a.jsonl", "{\"body\": \"a\"}", plain(), &["`text`", "no such field", "body"]);
    refused("a.jsonl", "{}", plain(), &["`text`", "expected a string, got no such field"]);
    refused("a.jsonl", "[".repeat(100_000), plain(), &["line 1", "a JSON object"]);
    let bytes = [&b"{\"text\": \"a\"}\n{\"text\": \""[..], &[0xff], b"\"}"].concat();
    refused("a.jsonl", bytes, plain(), &["line 2", "byte 11 of the line", "UTF-8", "0xff"]);
}

#[test]
fn bad_plain_texts_are_named() {
    for (split, words) in [
        (Split::Document, ["line 2", "byte 3 of the line", "0xe9"]),
        (Split::Lines, ["line 2", "byte 3 of the line", "0xe9"]),
        (Split::BlankLines, ["line 2", "byte 3 of the line", "0xe9"]),
    ] {
        refused("a.txt", b"ok\nab\xe9cd", options(split), &words);
    }
}

#[test]
fn kinds_that_are_not_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.csv", "a", "a.parquet.gz", "a.gz", "a.json"] {
        refused(name, "x", TextOptions::default(), &["kind of file", ".jsonl", ".parquet"]);
    }
    let open = |paths: &[PathBuf]| Texts::open(paths, TextOptions::default()).unwrap_err();
    assert!(open(&[dir.path().to_owned()]).to_string().contains("folder"));
    std::fs::create_dir(dir.path().join("d.txt")).unwrap();
    assert!(open(&[dir.path().join("d.txt")]).to_string().contains("folder"));
    for name in ["gone.txt", "gone"] {
        assert!(matches!(open(&[dir.path().join(name)]), Error::Io { .. }));
    }
    assert!(matches!(open(&[]), Error::Request(_)));
    assert!(open(&["-".into(), "-".into()]).to_string().contains("once"));
    assert!(matches!(Lines::open(Path::new("a.parquet"), 10), Err(Error::Input { .. })));
}

#[test]
fn documents_that_are_too_long_end_reading_early() {
    let short = |split| TextOptions { longest: 1000, ..options(split) };
    let (fits, long) = ("x".repeat(1000), "x".repeat(1001));
    assert_eq!(read("a.txt", &fits, short(Split::Document)).unwrap(), [&*fits]);
    assert_eq!(read("a.txt", format!("{fits}\r\n{fits}"), short(Split::Lines)).unwrap().len(), 2);
    refused("a.txt", &long, short(Split::Document), &["at most 1000 bytes"]);
    refused("a.txt", format!("a\n{long}\n"), short(Split::Lines), &["line 2", "at most 1000 bytes"]);
    refused("a.txt", "12345\n".repeat(300), short(Split::BlankLines), &["the document", "1000"]);
    refused("a.jsonl", format!("{{\"text\": \"{fits}\"}}"), short(Split::Document), &["line 1", "1000"]);
}

/// A gigabyte of zeros, packed to some kilobytes: never unpacked whole.
#[test]
fn a_bomb_is_refused_at_the_limit() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let block = vec![b'0'; 1 << 20];
    (0..1024).for_each(|_| encoder.write_all(&block).unwrap());
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    for (name, split) in
        [("a.txt.zst", Split::Document), ("a.txt.zst", Split::BlankLines), ("a.jsonl.zst", Split::Lines)]
    {
        refused(name, &bomb, options(split), &["at most 67108864 bytes"]);
    }
}

#[test]
fn packed_files_that_are_cut_short_or_damaged_are_named() {
    let text: String = (0..20_000).map(|i| format!("{{\"text\": \"{i}\"}}\n")).collect();
    for (name, packed) in [("a.jsonl.gz", gzip(text.as_bytes())), ("a.jsonl.zst", zstd(text.as_bytes()))] {
        refused(name, &packed[..packed.len() / 2], TextOptions::default(), &["cannot read"]);
        refused(name, "no archive", TextOptions::default(), &["cannot"]);
        let mut damaged = packed.clone();
        damaged[packed.len() / 2..packed.len() / 2 + 8].fill(0x55);
        assert!(read(name, damaged, TextOptions::default()).is_err(), "{name}");
    }
}

/// A Parquet file of an id and a nullable text, in row groups of 3 rows.
fn rows(path: &Path, texts: &[Option<&str>], compression: Compression, version: WriterVersion) {
    let schema = "message m { REQUIRED INT32 id; OPTIONAL BYTE_ARRAY text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties =
        WriterProperties::builder().set_compression(compression).set_writer_version(version).build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for group in texts.chunks(3) {
        let mut row_group = writer.next_row_group().unwrap();
        let ids: Vec<i32> = (0..group.len() as i32).collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<ByteArray> = group.iter().flatten().map(|t| ByteArray::from(*t)).collect();
        let levels: Vec<i16> = group.iter().map(|t| i16::from(t.is_some())).collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        row_group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_columns_are_read_in_every_packing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let long = "long ".repeat(100_000);
    let texts = ["a", "é", "a", "b", &long, "c", "d"];
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(Default::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            rows(&path, &texts.map(Some), compression, version);
            assert_eq!(read_all(std::slice::from_ref(&path), TextOptions::default()).unwrap(), texts);
        }
    }
}

#[test]
fn parquet_columns_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let file = |texts: &[Option<&str>]| {
        rows(&path, texts, Compression::SNAPPY, WriterVersion::PARQUET_1_0);
        std::fs::read(&path).unwrap()
    };
    let texts = [Some("a"), Some("b"), Some("c"), Some("d"), None];
    refused("a.parquet", file(&texts), TextOptions::default(), &["row 5", "`text`", "null"]);
    refused("a.parquet", file(&[None]), TextOptions::default(), &["row 1", "null"]);
    let field = |name: &str| TextOptions { field: name.into(), ..TextOptions::default() };
    refused("a.parquet", file(&texts), field("body"), &["column `body`", "no such column", "text"]);
    refused("a.parquet", file(&texts), field("id"), &["column `id`", "INT32"]);
    let short = TextOptions { longest: 3, ..TextOptions::default() };
    refused("a.parquet", file(&[Some("abc"), Some("abcd")]), short, &["row 2", "at most 3 bytes"]);
}

#[test]
fn parquet_text_that_is_not_utf8_or_in_a_list_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    for (schema, value, levels, words) in [
        ("message m { REQUIRED BYTE_ARRAY text; }", &b"ab\xff"[..], false, ["row 1", "byte 3", "0xff"]),
        ("message m { REPEATED BYTE_ARRAY text (UTF8); }", b"ab", true, ["column `text`", "list", "strings"]),
    ] {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let value = [ByteArray::from(value.to_vec())];
        let (one, zero) = ([1i16], [0i16]);
        let (def, rep) = if levels { (Some(&one[..]), Some(&zero[..])) } else { (None, None) };
        column.typed::<ByteArrayType>().write_batch(&value, def, rep).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        refused("a.parquet", std::fs::read(&path).unwrap(), TextOptions::default(), &words);
    }
}

#[test]
fn a_parquet_page_that_claims_gigabytes_is_refused_before_it_is_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let long = "0".repeat(300 << 20);
    rows(&path, &[Some(&long)], Compression::ZSTD(Default::default()), WriterVersion::PARQUET_1_0);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() < 1 << 20);
    refused("a.parquet", bytes, TextOptions::default(), &["a page of 3", "at most 268435456"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_parquet_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        rows(&path, &[Some("a"), Some("bc"), Some("a"), None], Compression::SNAPPY, WriterVersion::PARQUET_2_0);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        // What it gives is not looked at: it gives texts or an error.
        let _ = read("b.parquet", bytes, TextOptions::default());
    }
}
