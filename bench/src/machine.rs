//! The machine under the measurement: what it is, and how much of its processor went to whom.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What a figure was measured on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Its operating system and kernel release.
    pub(crate) kernel: String,
    /// The processor's own name.
    pub(crate) cpu: String,
    /// Processors that this process may use.
    pub(crate) cpus: usize,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// The directories that stand for disks.
    pub(crate) directories: Vec<Directory>,
    /// The commit that was checked out, `+` when files were changed since; `unknown` without git.
    pub(crate) commit: String,
    /// Whether this is an optimised build.
    pub(crate) optimised: bool,
    /// Seconds since the Unix epoch when the run began.
    pub(crate) started: u64,
}

/// A directory that stands for a disk.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Directory {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The type of its file system.
    pub(crate) filesystem: String,
    /// The device below it.
    pub(crate) device: String,
    /// Bytes that can be written.
    pub(crate) free: u64,
    /// Bytes in all.
    pub(crate) total: u64,
}

/// Describes this machine and the given directories (which must exist).
pub(crate) fn describe(directories: &[PathBuf]) -> Machine {
    Machine {
        kernel: kernel(),
        cpu: cpu_model(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory(),
        directories: directories.iter().map(|path| directory(path)).collect(),
        commit: commit(),
        optimised: !cfg!(debug_assertions),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
    }
}

/// The most memory that this process ever held, in bytes.
pub(crate) fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Bytes free in the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
}

fn kernel() -> String {
    let name = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    format!("{} {} {}", part(name.sysname()), part(name.release()), part(name.machine()))
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        info.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(':')).map(|(_, v)| v.trim())
    };
    field("model name").or_else(|| field("CPU part")).unwrap_or("unknown").to_string()
}

fn memory() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("MemTotal:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn directory(path: &Path) -> Directory {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (filesystem, device) = mount_of(&mounts, &real).unwrap_or(("unknown".into(), "unknown".into()));
    let total = rustix::fs::statvfs(&real).map_or(0, |stat| stat.f_blocks * stat.f_frsize);
    Directory { path: path.to_path_buf(), filesystem, device, free: free_bytes(&real), total }
}

/// The file system type and device of the mount that holds `path`: the longest mount point above it, the last if equal.
fn mount_of(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let mut best: Option<(usize, String, String)> = None;
    for line in mountinfo.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4).map(|point| point.replace("\\040", " ")) else { continue };
        let mut source = source.split(' ');
        let (Some(kind), Some(device)) = (source.next(), source.next()) else { continue };
        let length = Path::new(&point).components().count();
        if path.starts_with(&point) && best.as_ref().is_none_or(|(longest, ..)| length >= *longest) {
            best = Some((length, kind.to_string(), device.to_string()));
        }
    }
    best.map(|(_, kind, device)| (kind, device))
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_string() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if changed { format!("{commit}+") } else { commit }
}

/// Processor time at one moment; two of them make a [`CpuUse`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuSample {
    wall: Instant,
    process: Duration,
    own_ticks: u64,
    kernel_ticks: u64,
    tasks_ticks: u64,
    interrupt_ticks: u64,
    steal_ticks: u64,
}

/// Where the processors' time went between two samples, in seconds. Summable.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct CpuUse {
    /// How long the interval was.
    pub(crate) wall: f64,
    /// Of this process, its system calls included.
    pub(crate) process: f64,
    /// Of the whole machine: tasks, kernel threads and interrupts.
    pub(crate) system: f64,
    /// Of user processes other than this one and its children.
    pub(crate) foreign: f64,
    /// Taken by the hypervisor for others.
    pub(crate) steal: f64,
}

impl CpuSample {
    /// The processor time used so far.
    pub(crate) fn now() -> CpuSample {
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let tick = |index: usize| ticks.get(index).copied().unwrap_or(0);
        CpuSample {
            wall: Instant::now(),
            process: Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0)),
            own_ticks: task_ticks(Path::new("/proc/self/stat"), true).map_or(0, |(_, ticks)| ticks),
            kernel_ticks: kernel_thread_ticks(),
            tasks_ticks: tick(0) + tick(1) + tick(2),
            interrupt_ticks: tick(5) + tick(6),
            steal_ticks: tick(7),
        }
    }

    /// What was used between `self` and `later`.
    ///
    /// The system's counters advance in ticks (10 ms as a rule), so short intervals say little about anything but the process.
    pub(crate) fn until(&self, later: &CpuSample) -> CpuUse {
        let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        let tasks = later.tasks_ticks.saturating_sub(self.tasks_ticks);
        let own = later.own_ticks.saturating_sub(self.own_ticks);
        let kernel = later.kernel_ticks.saturating_sub(self.kernel_ticks);
        let interrupts = later.interrupt_ticks.saturating_sub(self.interrupt_ticks);
        CpuUse {
            wall: (later.wall - self.wall).as_secs_f64(),
            process: later.process.saturating_sub(self.process).as_secs_f64(),
            system: seconds(tasks + interrupts),
            foreign: seconds(tasks.saturating_sub(own + kernel)),
            steal: seconds(later.steal_ticks.saturating_sub(self.steal_ticks)),
        }
    }
}

impl std::ops::AddAssign for CpuUse {
    fn add_assign(&mut self, other: CpuUse) {
        self.wall += other.wall;
        self.process += other.process;
        self.system += other.system;
        self.foreign += other.foreign;
        self.steal += other.steal;
    }
}

/// A task's flags and ticks from its `stat` file; with `children`, those that it waited for count too.
fn task_ticks(path: &Path, children: bool) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(path).ok()?;
    // The name in parentheses may hold anything: fields are counted after it. The first is the state, field 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
    let mut ticks = field(14)? + field(15)?;
    if children {
        ticks += field(16)? + field(17)?;
    }
    Some((field(9)?, ticks))
}

/// Ticks of all kernel threads: block-device work queues and the like, which work for us without being charged to us.
fn kernel_thread_ticks() -> u64 {
    const KERNEL_THREAD: u64 = 0x0020_0000;
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let tasks = entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
    let counted = tasks.filter_map(|entry| task_ticks(&entry.path().join("stat"), false));
    counted.filter(|(flags, _)| flags & KERNEL_THREAD != 0).map(|(_, ticks)| ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_belongs_to_its_longest_mount() {
        let info = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /mnt/a\\040b rw shared:1 - xfs /dev/sdb rw\n";
        let of = |path: &str| mount_of(info, Path::new(path)).map(|(kind, _)| kind);
        assert_eq!(of("/mnt/a b/c").as_deref(), Some("xfs"));
        assert_eq!(of("/mnt/a").as_deref(), Some("ext4"));
    }

    #[test]
    fn busy_work_shows_up_as_process_time() {
        let before = CpuSample::now();
        let start = Instant::now();
        let mut sum = 0_u64;
        while start.elapsed() < Duration::from_millis(60) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(1));
        }
        let used = before.until(&CpuSample::now());
        assert!(used.process > 0.005, "{used:?} {sum}");
    }
}
