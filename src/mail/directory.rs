//! Mails as files, for development and for machines without a mail server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Delivery;

/// A directory that receives one `.eml` file per mail.
pub(super) struct Directory(pub PathBuf);

impl Directory {
    /// Writes the mail whole or not at all. The file is named after the message id, so sending the
    /// same mail again replaces it.
    pub async fn write(&self, message_id: &str, bytes: Vec<u8>) -> Delivery {
        let (directory, name) = (self.0.clone(), file_name(message_id));
        match blocking(move || write_atomically(&directory, &name, &bytes)).await {
            Ok(()) => Delivery::Accepted,
            Err(error) => Delivery::TryLater { reason: self.explain(&error) },
        }
    }

    /// Whether a file can be written there.
    pub async fn check(&self) -> Result<(), String> {
        const PROBE: &str = ".tollgate-check";
        let directory = self.0.clone();
        blocking(move || {
            write_atomically(&directory, PROBE, b"")?;
            fs::remove_file(directory.join(PROBE))
        })
        .await
        .map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &io::Error) -> String {
        format!("cannot write mails to {}: {error}", self.0.display())
    }
}

/// Runs file work where it cannot hold up the runtime.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The message id with every character replaced that could mean something to a file system.
fn file_name(message_id: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    format!("{}.eml", message_id.replace(|c| !is_plain(c), "_"))
}

/// Under another name first, then renamed: a reader sees all of the mail or nothing.
fn write_atomically(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let unfinished = directory.join(format!(".{name}.unfinished"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // Mails name people and carry links that open their account.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, directory.join(name))?;
    // The new name is safe only once the directory is.
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_cannot_leave_the_directory() {
        assert_eq!(file_name("ntc_1@billing.example.com"), "ntc_1@billing.example.com.eml");
        assert_eq!(file_name("../../etc/x@y"), ".._.._etc_x@y.eml");
    }
}
