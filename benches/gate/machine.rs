//! What the machine says of itself and of processes: Linux's /proc, and the disk's fsync.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// Linux counts processor time in hundredths of a second, whatever its own clock's rate.
const TICKS_PER_SECOND: f64 = 100.0;

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One line about the machine, so that a table says where it comes from.
pub fn description(folder: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let kernel = read("/proc/sys/kernel/osrelease");
    let disk = file_system(folder).unwrap_or_else(|| "unknown file system".to_owned());
    format!("{cores} cores of {model}, Linux {}, {disk}", kernel.trim())
}

/// The kind of file system that the folder is on.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|mount| mount.len() > 2 && folder.starts_with(mount[1]))
        .max_by_key(|mount| mount[1].len())
        .map(|mount| mount[2].to_owned())
}

/// Times of `fdatasync` after a write of 4 KB at the end of a file, in ms, sorted.
pub fn fsyncs_ms(folder: &Path, count: usize) -> Result<Vec<f64>> {
    let path = folder.join("fsync");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        file.write_all(&[7; 4096])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    fs::remove_file(path)?;
    times.sort_unstable_by(f64::total_cmp);
    Ok(times)
}

/// Waits until what other parts have written is on the disk, so that it does not slow the next.
pub fn settle_disk(folder: &Path) -> Result<()> {
    let output = std::process::Command::new("sync").arg("-f").arg(folder).status()?;
    anyhow::ensure!(output.success(), "sync failed");
    Ok(())
}

/// The processor time a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // After the name, which may hold anything, `utime` and `stime` are the 12th and 13th field.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

/// The processor time that all cores together have spent doing nothing, in seconds.
pub fn idle_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    // cpu, user, nice, system, idle, iowait
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(4).take(2);
    Ok(ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

/// What a process holds in memory now, in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

/// The most it has held since [`forget_peak`].
pub fn peak_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM:")
}

pub fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    let mut file = File::options().write(true).open(&path).with_context(|| path.clone())?;
    file.write_all(b"5").with_context(|| path)
}

fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse::<f64>().ok())
        .with_context(|| format!("process {pid} has no {field}"))?;
    Ok(kib / 1024.0)
}

/// The bytes of all files in a folder whose names the caller wants.
pub fn bytes_in(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            bytes += bytes_in(&entry.path(), wanted)?;
        } else if wanted(&entry.file_name().to_string_lossy()) {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}
