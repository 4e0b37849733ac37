//! Three members in one process, over real connections on loopback that can be cut.

mod cluster;
mod gone_back;
mod harness;
mod lost_tail;
mod storage;
