//! Whether each disk's directory is still there: looked at every two seconds, also while nothing is written.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::health::DiskState;
use crate::io::DiskIndex;
use crate::log::Log;

/// How often a disk is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

impl Log {
    /// Loses a disk whose directory was removed, renamed or emptied: its open files take every write, and nobody finds them again.
    pub(crate) async fn keep_watching(self: Rc<Log>, disk: DiskIndex) {
        let mut hangs = false;
        loop {
            self.ops.sleep(INTERVAL).await;
            let (life, watched) = {
                let disk = &self.disks.borrow()[disk.0];
                let counts = matches!(disk.state, DiskState::Healthy | DiskState::Rebuilding);
                (disk.life, counts && !disk.joining)
            };
            // A disk that hangs is asked once.
            if !watched || (hangs && self.ops.in_flight(disk) > 0) {
                continue;
            }
            let space = self.ops.space(disk).await;
            hangs = space.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            if self.disks.borrow()[disk.0].life != life {
                continue;
            }
            match space {
                Ok(space) => self.disks.borrow_mut()[disk.0].space = space,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.lose(disk, DiskState::Missing, format!("its directory is not there any more: {error}"));
                }
                // Whatever else is wrong with it shows where it is used.
                Err(_) => {}
            }
        }
    }
}
