//! From outcomes to a status: so many in a row, whatever they are. Timeouts count like any other failure.

use muster_catalog::Status;

use crate::definition::Thresholds;

/// The streaks of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Threshold {
    limits: Thresholds,
    status: Status,
    /// Outcomes in a row that passed.
    passes: u32,
    /// … that passed or warned.
    answers: u32,
    /// … that warned or failed.
    blemishes: u32,
    /// … that failed.
    failures: u32,
}

impl Threshold {
    /// Starts from a status that holds until outcomes turn it.
    pub(crate) fn new(limits: Thresholds, status: Status) -> Self {
        Self { limits, status, passes: 0, answers: 0, blemishes: 0, failures: 0 }
    }

    /// The status that holds.
    pub(crate) fn status(&self) -> Status {
        self.status
    }

    /// Sets the status past the thresholds and starts all streaks anew, as a TTL update does.
    pub(crate) fn set(&mut self, status: Status) {
        *self = Self::new(self.limits, status);
    }

    /// Takes the status for one that held long ago: the next outcome that is worse turns it, whatever the thresholds.
    pub(crate) fn doubt(&mut self) {
        let last_but_one = self.limits.fall.saturating_sub(1);
        (self.blemishes, self.failures) = (last_but_one, last_but_one);
    }

    /// How many outcomes in a row turn it to the worse.
    pub(crate) fn fall(&self) -> u32 {
        self.limits.fall
    }

    /// Takes an outcome; returns the status that holds now.
    pub(crate) fn observe(&mut self, outcome: Status) -> Status {
        let extend = |streak: &mut u32, goes_on: bool| *streak = if goes_on { streak.saturating_add(1) } else { 0 };
        extend(&mut self.passes, outcome == Status::Passing);
        extend(&mut self.answers, outcome != Status::Critical);
        extend(&mut self.blemishes, outcome != Status::Passing);
        extend(&mut self.failures, outcome == Status::Critical);
        let Thresholds { rise, fall, warn_after } = self.limits;
        self.status = match self.status {
            Status::Passing | Status::Warning if self.failures >= fall => Status::Critical,
            Status::Warning | Status::Critical if self.passes >= rise => Status::Passing,
            Status::Critical if self.answers >= rise => Status::Warning,
            Status::Passing if self.blemishes >= fall => Status::Warning,
            Status::Passing if warn_after.is_some_and(|after| self.failures >= after) => Status::Warning,
            unchanged => unchanged,
        };
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(letter: char) -> Status {
        match letter {
            'p' => Status::Passing,
            'w' => Status::Warning,
            _ => Status::Critical,
        }
    }

    #[test]
    fn streaks_turn_the_status() {
        // (rise, fall, warn after, start, outcomes, statuses)
        let table = [
            (1, 1, None, 'c', "p", "p"),
            (1, 1, None, 'c', "pcpc", "pcpc"),
            (1, 2, None, 'p', "cpcpccp", "pppppcp"),
            (2, 2, None, 'c', "ppccpp", "cppccp"),
            (3, 3, None, 'c', "ppcppp", "cccccp"),
            (1, 3, Some(1), 'p', "cccp", "wwcp"),
            (1, 3, Some(2), 'p', "cpccc", "pppwc"),
            (1, 1, None, 'p', "wpw", "wpw"),
            (1, 2, None, 'p', "wcw", "pww"),
            (1, 2, None, 'p', "wcc", "pwc"),
            (2, 1, None, 'c', "wpp", "cwp"),
            (2, 2, None, 'w', "pcpcc", "wwwwc"),
            (1, 2, None, 'c', "cccw", "cccw"),
        ];
        for (rise, fall, warn_after, start, outcomes, expected) in table {
            let mut threshold = Threshold::new(Thresholds { rise, fall, warn_after }, status(start));
            let got: Vec<_> = outcomes.chars().map(|letter| threshold.observe(status(letter))).collect();
            let expected: Vec<_> = expected.chars().map(status).collect();
            assert_eq!(got, expected, "rise {rise} fall {fall} warn {warn_after:?} from {start}: {outcomes}");
        }
    }

    #[test]
    fn a_status_in_doubt_is_turned_by_one_outcome() {
        for (outcomes, expected) in [("c", "c"), ("w", "w"), ("pc", "pp"), ("pcc", "ppp"), ("pccc", "pppc")] {
            let mut threshold = Threshold::new(Thresholds { rise: 1, fall: 3, warn_after: None }, Status::Passing);
            threshold.doubt();
            let got: Vec<_> = outcomes.chars().map(|letter| threshold.observe(status(letter))).collect();
            assert_eq!(got, expected.chars().map(status).collect::<Vec<_>>(), "{outcomes}");
        }
    }

    #[test]
    fn a_set_status_starts_anew() {
        let mut threshold = Threshold::new(Thresholds { rise: 1, fall: 2, warn_after: None }, Status::Passing);
        threshold.observe(Status::Critical);
        threshold.set(Status::Passing);
        assert_eq!(threshold.observe(Status::Critical), Status::Passing);
        assert_eq!(threshold.status(), Status::Passing);
    }
}
