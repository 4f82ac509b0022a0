//! What a region of these tests is opened with, and how a parent tells its child process.

use std::path::PathBuf;
use std::time::Duration;

use meridian::{DiskConfig, DriverChoice, Options};

/// The variable that carries an order to the child.
pub(crate) const VARIABLE: &str = "MERIDIAN_CHILD";

/// How long these tests wait for a disk, unless they say otherwise.
pub(crate) const STALL: Duration = Duration::from_secs(10);

/// How a child process shall open a region and load it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) create: bool,
    pub(crate) driver: DriverChoice,
    pub(crate) seed: u64,
    /// The next number of each writer's thread.
    pub(crate) next: Vec<u64>,
    /// Kill yourself when so many transactions have been applied.
    pub(crate) kill_at: Option<u64>,
    /// Give this disk up after so many milliseconds.
    pub(crate) fail: Option<(usize, u64)>,
    /// Trim behind the writers.
    pub(crate) trim: bool,
    /// Take a disk for stalled after so long.
    pub(crate) stall: Duration,
    pub(crate) disks: Vec<PathBuf>,
}

impl Order {
    pub(crate) fn options(&self) -> Options {
        let mut options = options(&self.disks, self.driver);
        options.stall_timeout = self.stall;
        options
    }

    /// One line of words.
    pub(crate) fn encode(&self) -> String {
        let list = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let optional = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let disks: Vec<String> = self.disks.iter().map(|disk| disk.display().to_string()).collect();
        format!(
            "{} {} {} {} {} {} {} {} {} {}",
            self.create,
            self.driver == DriverChoice::Uring,
            self.seed,
            list(&self.next),
            optional(self.kill_at),
            optional(self.fail.map(|(disk, _)| disk as u64)),
            self.fail.map_or(0, |(_, after)| after),
            self.trim,
            self.stall.as_millis(),
            disks.join(":")
        )
    }

    pub(crate) fn decode(line: &str) -> Order {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().ok();
        Order {
            create: words[0] == "true",
            driver: if words[1] == "true" { DriverChoice::Uring } else { DriverChoice::Threads },
            seed: number(words[2]).unwrap(),
            next: words[3].split(',').map(|word| number(word).unwrap()).collect(),
            kill_at: number(words[4]),
            fail: number(words[5]).map(|disk| (disk as usize, number(words[6]).unwrap())),
            trim: words[7] == "true",
            stall: Duration::from_millis(number(words[8]).unwrap()),
            disks: words[9].split(':').map(PathBuf::from).collect(),
        }
    }
}

#[test]
fn an_order_arrives_as_it_was_given() {
    let order = Order {
        create: true,
        driver: DriverChoice::Uring,
        seed: 77,
        next: vec![1, 5, 9],
        kill_at: Some(12),
        fail: Some((2, 30)),
        trim: true,
        stall: Duration::from_millis(300),
        disks: vec!["/a/b".into(), "/c".into()],
    };
    assert_eq!(Order::decode(&order.encode()), order);
    let plain = Order { create: false, driver: DriverChoice::Threads, kill_at: None, fail: None, ..order };
    assert_eq!(Order::decode(&plain.encode()), plain);
}

/// Small segments, so that a short run seals, rolls, checkpoints and trims many.
pub(crate) fn options(disks: &[PathBuf], driver: DriverChoice) -> Options {
    let disks = disks.iter().enumerate();
    let disks = disks.map(|(at, path)| DiskConfig::new(path, &format!("disk-{at}"), "zone-1")).collect();
    let mut options = Options::new(disks);
    options.driver = driver;
    options.segment_bytes = 256 << 10;
    options.block_bytes = 64 << 10;
    options.transaction_bytes = 96 << 10;
    options.rebuild_bytes_per_second = 0;
    options.stall_timeout = STALL;
    options
}

/// The drivers that this machine has; says aloud which it lacks.
pub(crate) fn has(driver: DriverChoice) -> bool {
    let error = meridian::io::driver(driver).err();
    if let Some(error) = &error {
        println!("skipped: {driver:?}: {error}");
    }
    error.is_none()
}
