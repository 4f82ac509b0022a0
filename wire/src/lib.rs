//! The geo link: what leaves a region.
