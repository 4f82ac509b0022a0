//! The engine's files, and what must hold of them.
#![allow(dead_code, reason = "some of it is the engine's only, or for health reports")]

pub(crate) use crate::prims;

#[path = "../../../engine/src/io/bell.rs"]
pub(crate) mod bell;
#[path = "../../../engine/src/sync/intake.rs"]
pub(crate) mod intake;
#[path = "../models.rs"]
pub(crate) mod models;
#[path = "../../../engine/src/sync/park.rs"]
pub(crate) mod park;
#[path = "../../../engine/src/sync/ticket.rs"]
pub(crate) mod ticket;
#[path = "../../../engine/src/sync/watermark.rs"]
pub(crate) mod watermark;
