//! The bytes on disk: everything that Meridian reads back (docs/FORMAT.md draws them).
