//! The checksums of the catalog after the last entries, for members that compare theirs.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use muster_catalog::Checksum;

/// Entries whose checksum is kept. A member asks the others for an index that it has reached a moment ago: at ten thousand
/// writes in a second they may be this far ahead of it, or it of them. Half a megabyte.
const KEPT: usize = 16_384;

/// The checksum after each of the last entries, by index.
#[derive(Debug, Default)]
pub(crate) struct Sums(Mutex<VecDeque<(u64, Checksum)>>);

impl Sums {
    /// Adds those of the next entries.
    pub(crate) fn extend(&self, next: Vec<(u64, Checksum)>) {
        let mut kept = self.lock();
        kept.extend(next);
        let over = kept.len().saturating_sub(KEPT);
        kept.drain(..over);
    }

    /// Begins anew with this one: another catalog was put in place.
    pub(crate) fn reset(&self, index: u64, sum: Option<Checksum>) {
        let mut kept = self.lock();
        kept.clear();
        kept.extend(sum.map(|sum| (index, sum)));
    }

    /// The last index, and the checksum there.
    pub(crate) fn last(&self) -> Option<(u64, Checksum)> {
        self.lock().back().copied()
    }

    /// The checksum at an index, where it is kept.
    pub(crate) fn at(&self, index: u64) -> Option<Checksum> {
        let kept = self.lock();
        let at = kept.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        kept.get(at).map(|(_, sum)| *sum)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Checksum)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_found_and_older_ones_are_let_go() {
        let sums = Sums::default();
        let sum = |index: u64| Checksum(u128::from(index) * 3);
        let (first, last) = (5, 5 + 2 * KEPT as u64);
        for index in first..=last {
            sums.extend(vec![(index, sum(index))]);
        }
        let oldest = last - KEPT as u64 + 1;
        assert_eq!((sums.last(), sums.at(last + 1)), (Some((last, sum(last))), None));
        assert_eq!((sums.at(oldest), sums.at(oldest - 1)), (Some(sum(oldest)), None));
        sums.reset(7, Some(sum(8)));
        assert_eq!((sums.last(), sums.at(last), sums.at(7)), (Some((7, sum(8))), None, Some(sum(8))));
    }
}
