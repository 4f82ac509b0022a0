//! The real drivers: the conformance suite on each kind of directory, and what only real threads and files can show.

use std::path::PathBuf;

use super::*;

/// The directories to test in: the usual one for temporary files, and memory where there is such a file system.
fn places() -> Vec<PathBuf> {
    let mut places = vec![std::env::temp_dir()];
    places.extend(Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()));
    places
}

fn conforms(choice: DriverChoice) {
    for place in places() {
        let kept = std::cell::RefCell::new(Vec::new());
        conformance::run(|| {
            let root = tempfile::tempdir_in(&place).expect("a directory");
            let path = root.path().to_owned();
            kept.borrow_mut().push(root);
            (driver(choice).expect("a driver"), path)
        });
    }
}

#[test]
fn the_threads_conform() {
    conforms(DriverChoice::Threads);
}

#[cfg(all(feature = "uring", target_os = "linux"))]
#[test]
fn io_uring_conforms() {
    if let Err(error) = driver(DriverChoice::Uring) {
        eprintln!("not tested, io_uring is refused here: {error}");
        return;
    }
    conforms(DriverChoice::Uring);
}
