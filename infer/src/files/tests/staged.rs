//! Directories and files that appear whole or not at all.

use std::fs;
use std::io::{Error as IoError, ErrorKind};

use super::super::staged::write_error;
use super::*;

const MARKER: &str = "manifest.json";

/// Names in `dir`, hidden ones too.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn write_version(target: &Path, text: &str) -> crate::Result<()> {
    let staged = StagedDir::create(target, MARKER)?;
    staged.write(MARKER, br#"{"qat":1}"#)?;
    staged.write("text", text.as_bytes())?;
    staged.commit()
}

#[test]
fn a_directory_appears_with_the_commit() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("new/out");
    let staged = StagedDir::create(&target, MARKER).unwrap();
    fs::create_dir(staged.path().join("inner")).unwrap();
    staged.write("inner/text", b"hello").unwrap();
    assert_eq!(listing(&dir.path().join("new")), [".out.partial"]);
    assert_eq!(staged.target(), target);
    staged.commit().unwrap();
    assert_eq!(listing(&dir.path().join("new")), ["out"]);
    assert_eq!(fs::read(target.join("inner/text")).unwrap(), b"hello");
}

#[test]
fn a_dropped_directory_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    write_version(&target, "old").unwrap();
    let staged = StagedDir::create(&target, MARKER).unwrap();
    staged.write("text", b"half").unwrap();
    drop(staged);
    assert_eq!(listing(dir.path()), ["out"]);
    assert_eq!(fs::read(target.join("text")).unwrap(), b"old");
}

#[test]
fn our_own_directory_is_replaced_whole() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    write_version(&target, "old").unwrap();
    fs::write(target.join("extra"), "").unwrap();
    write_version(&target, "new").unwrap();
    assert_eq!(fs::read(target.join("text")).unwrap(), b"new");
    assert_eq!(listing(&target), [MARKER, "text"]);
    assert_eq!(listing(dir.path()), ["out"]);
}

#[test]
fn an_empty_directory_is_accepted() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    fs::create_dir(&target).unwrap();
    write_version(&target, "new").unwrap();
    assert_eq!(listing(dir.path()), ["out"]);
}

#[test]
fn a_foreign_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    let want = "out: exists and has no manifest.json written by qat, so it is not replaced; \
                choose another directory or remove it";
    fs::create_dir(&target).unwrap();
    fs::write(target.join("thesis.txt"), "").unwrap();
    assert_eq!(message(&dir, write_version(&target, "new")), want);
    // A manifest of somebody else's is no mark of ours.
    fs::write(target.join(MARKER), r#"{"name":"web app"}"#).unwrap();
    assert_eq!(message(&dir, write_version(&target, "new")), want);
    assert_eq!(listing(&target), [MARKER, "thesis.txt"]);
    let file = target.join("thesis.txt");
    assert_eq!(
        message(&dir, write_version(&file, "new")),
        "out/thesis.txt: is a file; choose another directory"
    );
    assert_eq!(
        message(&dir, write_version(&target.join(".."), "new")),
        "out/..: has no name of its own; give a directory or file to be made"
    );
}

#[test]
fn a_directory_that_another_made_meanwhile_is_kept() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    let staged = StagedDir::create(&target, MARKER).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("thesis.txt"), "").unwrap();
    assert_eq!(
        message(&dir, staged.commit()),
        "out: exists and has no manifest.json written by qat, so it is not replaced; \
         choose another directory or remove it"
    );
    assert_eq!(listing(dir.path()), ["out"]);
    assert_eq!(listing(&target), ["thesis.txt"]);
}

#[test]
fn what_a_killed_writer_left_is_removed() {
    let dir = TempDir::new().unwrap();
    let left = dir.path().join(".out.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("half"), "").unwrap();
    write_version(&dir.path().join("out"), "new").unwrap();
    assert_eq!(listing(dir.path()), ["out"]);
    assert_eq!(listing(&dir.path().join("out")), [MARKER, "text"]);
}

#[test]
fn what_was_killed_between_two_renames_is_brought_back() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    write_version(&target, "old").unwrap();
    fs::rename(&target, dir.path().join(".out.partial.old")).unwrap();
    drop(StagedDir::create(&target, MARKER).unwrap());
    assert_eq!(listing(dir.path()), ["out"]);
    assert_eq!(fs::read(target.join("text")).unwrap(), b"old");
}

#[cfg(unix)]
#[test]
fn a_second_writer_of_the_same_target_is_refused() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    let first = StagedDir::create(&target, MARKER).unwrap();
    assert_eq!(
        message(&dir, StagedDir::create(&target, MARKER)),
        "out: is being written by another process; wait for it, or choose another directory"
    );
    first.write(MARKER, b"{}").unwrap();
    first.commit().unwrap();
    assert_eq!(listing(dir.path()), ["out"]);
}

#[cfg(unix)]
#[test]
fn a_link_is_followed_and_kept() {
    let dir = TempDir::new().unwrap();
    let (target, link) = (dir.path().join("out"), dir.path().join("link"));
    write_version(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    write_version(&link, "new").unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(target.join("text")).unwrap(), b"new");
}

#[test]
fn a_file_is_replaced_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("report.json");
    write_file_atomic(&path, b"old").unwrap();
    write_file_atomic(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(dir.path()), ["report.json"]);
}

#[test]
fn writers_of_one_file_take_turns() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("shard");
    let content = |writer: u8| vec![writer; 10_000 + usize::from(writer)];
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                (0..50).for_each(|_| write_file_atomic(path, &content(writer)).unwrap());
            });
        }
    });
    let found = fs::read(&path).unwrap();
    assert!((0..4).any(|writer| found == content(writer)), "a whole one");
    assert_eq!(listing(dir.path()), ["shard"]);
}

#[test]
fn what_a_killed_writer_left_is_no_part_of_what_is_written() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(".report.json.partial"), "much longer than what will be there").unwrap();
    write_file_atomic(&dir.path().join("report.json"), b"new").unwrap();
    assert_eq!(fs::read(dir.path().join("report.json")).unwrap(), b"new");
    assert_eq!(listing(dir.path()), ["report.json"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_the_fix() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let path = file.join("report.json");
    let want = "file/report.json: cannot write (choose a directory that you may write to): \
                Not a directory (os error 20)";
    assert_eq!(message(&dir, write_file_atomic(&path, b"new")), want);
    assert_eq!(
        message(&dir, StagedDir::create(&file.join("sub/out"), MARKER)),
        "file/sub: cannot write (choose a directory that you may write to): Not a directory (os error 20)"
    );
    assert_eq!(
        message(&dir, write_file_atomic(&dir.path().join("gone/report.json"), b"new")),
        "gone/report.json: cannot write (make its directory first): No such file or directory (os error 2)"
    );
    // Whoever runs the tests may be allowed to write everywhere, so that the two other causes are given by hand.
    for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem] {
        let text = write_error(Path::new("out"), IoError::from(kind)).to_string();
        assert!(text.starts_with("out: cannot write (choose a directory that you may write to): "), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_with_the_fix() {
    let full = Path::new("/dev/full");
    let dir = TempDir::new().unwrap();
    assert_eq!(
        message(&dir, write_file_atomic(full, b"text")),
        "/dev/full: cannot write (make room, or choose a place on another disk): \
         No space left on device (os error 28)"
    );
    // The same through a whole directory: a file in it that takes no byte.
    let target = dir.path().join("out");
    let staged = StagedDir::create(&target, MARKER).unwrap();
    std::os::unix::fs::symlink(full, staged.path().join(MARKER)).unwrap();
    assert_eq!(
        message(&dir, staged.write(MARKER, b"{}")),
        ".out.partial/manifest.json: cannot write (make room, or choose a place on another disk): \
         No space left on device (os error 28)"
    );
    drop(staged);
    assert!(listing(dir.path()).is_empty());
}
