//! What one disk holds in the model: a superblock, and one cell for each position of each segment.

/// Disks in the largest region that is modelled: three, and one more to move to.
pub(crate) const DISKS: usize = 4;
/// One more than the highest epoch of a run. Epoch 0 stands for "none".
pub(crate) const EPOCHS: usize = 8;
/// Most positions a log can have.
pub(crate) const BLOCKS: usize = 4;

/// A set of disks, one bit each.
pub(crate) type Mask = u8;

/// The disks of a mask, lowest first.
pub(crate) fn members(mask: Mask) -> impl Iterator<Item = usize> {
    (0..DISKS).filter(move |disk| mask >> disk & 1 == 1)
}

/// How many disks are in a mask.
pub(crate) fn count(mask: Mask) -> u32 {
    mask.count_ones()
}

/// What a disk has at one position of one segment.
///
/// A good cell stands for the whole block: its payload (a value that no other block carries, unless the writer
/// itself sent the payload again in a later segment) and the commit index in its header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Cell(pub(crate) u8);

impl Cell {
    /// Nothing of this segment's life was ever written here.
    pub(crate) const BLANK: Cell = Cell(0);
    /// Something is here that does not verify: torn, or rotten.
    pub(crate) const BAD: Cell = Cell(1);

    /// A block that verifies. Values start at 1.
    pub(crate) fn good(value: u8, commit: u8) -> Cell {
        assert!(value > 0 && commit < 8, "a value and a commit index that fit a cell");
        Cell(value << 3 | commit)
    }

    /// Whether the block verifies.
    pub(crate) fn is_good(self) -> bool {
        self.0 >= 8
    }

    /// The payload.
    pub(crate) fn value(self) -> u8 {
        self.0 >> 3
    }

    /// The commit index in the header.
    pub(crate) fn commit(self) -> u8 {
        self.0 & 7
    }
}

/// The epoch table: for each epoch, the position where its segment starts, its replica set, and the region's members.
/// The start of one segment is the sealed length of the one before, so an entry and the seal are one superblock write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Table([u16; EPOCHS]);

/// One entry of the epoch table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// Where the epoch's segment starts.
    pub(crate) base: u8,
    /// The disks that take its writes.
    pub(crate) set: Mask,
    /// The disks whose superblocks vote.
    pub(crate) members: Mask,
}

impl Table {
    /// No entry.
    pub(crate) const EMPTY: Table = Table([0; EPOCHS]);

    /// Adds the entry of an epoch.
    pub(crate) fn put(&mut self, epoch: u8, entry: Entry) {
        let Entry { base, set, members } = entry;
        self.0[usize::from(epoch)] = u16::from(base) << 8 | u16::from(members << 4 | set);
    }

    /// The entry of an epoch, if the table has it.
    pub(crate) fn get(&self, epoch: u8) -> Option<Entry> {
        let [set, base] = self.0[usize::from(epoch)].to_le_bytes();
        (set != 0).then_some(Entry { base, set: set & 15, members: set >> 4 })
    }

    /// The entry of the highest epoch.
    ///
    /// # Panics
    /// If the table is empty.
    pub(crate) fn top(&self) -> Entry {
        self.get(self.last()).expect("a table that is used has an entry")
    }

    /// Every epoch of the table, in order.
    pub(crate) fn epochs(&self) -> impl DoubleEndedIterator<Item = u8> {
        (1..EPOCHS as u8).filter(move |epoch| self.0[usize::from(*epoch)] != 0)
    }

    /// The highest epoch, or 0.
    pub(crate) fn last(&self) -> u8 {
        self.epochs().next_back().unwrap_or(0)
    }

    /// The sealed length of an epoch's segment: where the next one starts.
    pub(crate) fn end(&self, epoch: u8) -> Option<u8> {
        self.epochs().find(|e| *e > epoch).and_then(|next| self.get(next)).map(|next| next.base)
    }

    /// The table with each replica set put through `map`.
    pub(crate) fn map_sets(&self, map: impl Fn(Mask) -> Mask) -> Table {
        let mut out = Table::default();
        for epoch in self.epochs() {
            let Entry { base, set, members } = self.get(epoch).expect("listed by epochs()");
            out.put(epoch, Entry { base, set: map(set), members: map(members) });
        }
        out
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |Entry { base, set, members }| format!("from {base} on {set:04b} of {members:04b}");
        f.debug_map().entries(self.epochs().map(|epoch| (epoch, self.get(epoch).map(show)))).finish()
    }
}

/// One disk. Everything in it is durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Disk {
    /// Whether it has a superblock at all: a blank disk has none.
    pub(crate) formatted: bool,
    /// The highest epoch promised.
    pub(crate) promised: u8,
    /// Counts the rounds of superblock writes. Kept only where a rule asks for it.
    pub(crate) generation: u8,
    /// The epoch table, seals included.
    pub(crate) table: Table,
    /// This disk holds every position of the table's last segment below this one.
    pub(crate) flushed: u8,
    /// Every position of the log below this one is known to be committed.
    pub(crate) committed: u8,
    /// The cells, by epoch and position.
    pub(crate) cells: [u8; EPOCHS * BLOCKS],
}

impl Disk {
    /// A disk that holds nothing.
    pub(crate) const EMPTY: Disk = Disk {
        formatted: false,
        promised: 0,
        generation: 0,
        table: Table::EMPTY,
        flushed: 0,
        committed: 0,
        cells: [0; EPOCHS * BLOCKS],
    };

    /// The cell of a position in an epoch's segment.
    pub(crate) fn cell(&self, epoch: u8, position: u8) -> Cell {
        Cell(self.cells[usize::from(epoch) * BLOCKS + usize::from(position)])
    }

    /// Overwrites a cell.
    pub(crate) fn write(&mut self, epoch: u8, position: u8, cell: Cell) {
        self.cells[usize::from(epoch) * BLOCKS + usize::from(position)] = cell.0;
    }

    /// Whether each position `from..to` of a segment verifies here.
    pub(crate) fn holds(&self, epoch: u8, from: u8, to: u8) -> bool {
        (from..to).all(|position| self.cell(epoch, position).is_good())
    }

    /// The highest commit index that this disk can tell of. One that verifies is true whatever became of its block.
    pub(crate) fn commit_seen(&self) -> u8 {
        let headers = self.cells.iter().map(|cell| Cell(*cell)).filter(|cell| cell.is_good()).map(Cell::commit);
        headers.max().unwrap_or(0).max(self.committed)
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.formatted {
            return f.write_str("blank");
        }
        write!(
            f,
            "promised {} table {:?} flushed {} committed {}",
            self.promised, self.table, self.flushed, self.committed
        )?;
        for epoch in 1..EPOCHS as u8 {
            for position in 0..BLOCKS as u8 {
                match self.cell(epoch, position) {
                    Cell::BLANK => {}
                    Cell::BAD => write!(f, " {epoch}:{position}=bad")?,
                    cell => write!(f, " {epoch}:{position}={}(commit {})", cell.value(), cell.commit())?,
                }
            }
        }
        Ok(())
    }
}
