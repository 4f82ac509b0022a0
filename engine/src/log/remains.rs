//! What a `create` that was cut short left behind. Nothing was ever committed there, so it is removed and made again.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{ALIGN, DATA_START, SUPERBLOCK_SLOT, Superblock};
use crate::io::DiskIndex;
use crate::log::Log;
use crate::log::attach::cannot_create;
use crate::log::disk::{SUPERBLOCK, Slot};
use crate::options::DiskConfig;

impl Log {
    /// Empties directories that hold remains only. Refuses where there is a region: a majority of superblocks, or a block in
    /// any slot; and where there is anything that is not the engine's. What it could not look at is refused, too.
    pub(crate) async fn clear_remains(&self, disks: &[(DiskIndex, DiskConfig)]) -> Result<()> {
        let (mut remains, mut written) = (Vec::new(), 0);
        for (disk, config) in disks {
            let names = self.ops.list(*disk).await.map_err(|error| cannot_create(config, &error))?;
            let names: Vec<String> = names.into_iter().map(|(name, _)| name).filter(|name| name != "LOCK").collect();
            // The superblock's file is made first and removed last.
            let ours = |name: &&String| *name == SUPERBLOCK || Slot::parse(name).is_some();
            let has_superblock = names.iter().any(|name| name == SUPERBLOCK);
            if let Some(name) = names.iter().find(|name| !has_superblock || !ours(name)) {
                let message = format!("{} is not empty: it holds {name:?}", config.path.display());
                return Err(if has_superblock { exists(config) } else { Error::invalid(message) });
            }
            for name in names.iter().filter(|name| *name != SUPERBLOCK) {
                let block = self.read_part(*disk, name, u64::from(DATA_START), ALIGN).await;
                if block.map_err(|error| cannot_create(config, &error))?.iter().any(|byte| *byte != 0) {
                    return Err(exists(config));
                }
            }
            if has_superblock {
                let slots = self.read_part(*disk, SUPERBLOCK, 0, 2 * SUPERBLOCK_SLOT).await;
                let slots = slots.map_err(|error| cannot_create(config, &error))?;
                written += usize::from(slots.chunks(SUPERBLOCK_SLOT).any(|slot| Superblock::decode(slot).is_ok()));
                remains.push((*disk, config, names));
            }
        }
        if let Some((_, config, _)) = remains.first()
            && (written > disks.len() / 2 || planted!(RemainsAreARegion))
        {
            return Err(exists(config));
        }
        self.ops.allow_writes();
        for (disk, config, mut names) in remains {
            names.sort_unstable_by_key(|name| name == SUPERBLOCK);
            for name in names {
                self.ops.remove(disk, name).await.map_err(|error| cannot_create(config, &error))?;
            }
        }
        Ok(())
    }

    async fn read_part(&self, disk: DiskIndex, name: &str, at: u64, len: usize) -> std::io::Result<crate::io::Buffer> {
        let file = self.ops.open(disk, name.to_owned(), None).await?;
        self.ops.read(disk, file, at, len).await
    }
}

fn exists(config: &DiskConfig) -> Error {
    Error::new(ErrorKind::Exists, format!("{} holds a region already: open it", config.path.display()))
}
