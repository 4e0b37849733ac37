//! Answers made once for many: a change wakes all who wait on a service, and most of them have asked the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use muster_catalog::View;

/// What an answer depends on beside the View: the path, and the parameters that are not about when to answer.
pub(crate) type Question = (String, Vec<(String, String)>);

/// Bodies kept, in bytes: some thousand instances. What is more is made for each who asks.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Questions kept: different ones that wake together are mostly those of one service.
const MOST_QUESTIONS: usize = 256;

/// The bodies that were made from the last View that parked reads were answered from.
#[derive(Debug, Default)]
pub(crate) struct SharedAnswers {
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    /// Weak, so that an old Snapshot is not kept alive; its address is not given to another while this stands.
    view: Weak<View>,
    bodies: HashMap<Question, Bytes>,
    bytes: usize,
}

impl SharedAnswers {
    /// The body, when it was made from this very View.
    pub(crate) fn find(&self, view: &Arc<View>, question: &Question) -> Option<Bytes> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let same = std::ptr::eq(answers.view.as_ptr(), Arc::as_ptr(view));
        answers.bodies.get(question).filter(|_| same).cloned()
    }

    /// Keeps a body for those who ask the same of this View, and drops what was made from another.
    pub(crate) fn keep(&self, view: &Arc<View>, question: Question, body: &Bytes) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(answers.view.as_ptr(), Arc::as_ptr(view)) {
            *answers = Answers { view: Arc::downgrade(view), ..Answers::default() };
        }
        let bytes = answers.bytes + body.len();
        if bytes > MOST_BYTES || answers.bodies.len() >= MOST_QUESTIONS {
            return;
        }
        if answers.bodies.insert(question, body.clone()).is_none() {
            answers.bytes = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_catalog::{Freshness, Snapshot};

    use super::*;

    fn view() -> Arc<View> {
        Arc::new(View::new(Arc::new(Snapshot::default()), Freshness::Live))
    }

    fn question(path: &str) -> Question {
        (path.to_owned(), Vec::new())
    }

    #[test]
    fn an_answer_serves_its_own_view_and_question_alone() {
        let (shared, first, second) = (SharedAnswers::default(), view(), view());
        let body = Bytes::from_static(b"[]");
        shared.keep(&first, question("/a"), &body);
        assert_eq!(shared.find(&first, &question("/a")), Some(body.clone()));
        assert_eq!(shared.find(&first, &question("/b")), None);
        assert_eq!(shared.find(&second, &question("/a")), None, "made from another View");
        shared.keep(&second, question("/a"), &body);
        assert_eq!(shared.find(&first, &question("/a")), None, "one View at a time");
        drop(first);
        assert_eq!(shared.find(&second, &question("/a")), Some(body));
    }

    #[test]
    fn it_is_bounded_in_bytes_and_in_questions() {
        let (shared, view) = (SharedAnswers::default(), view());
        let half = Bytes::from(vec![0; MOST_BYTES / 2 + 1]);
        shared.keep(&view, question("/a"), &half);
        shared.keep(&view, question("/b"), &half);
        assert!(shared.find(&view, &question("/a")).is_some() && shared.find(&view, &question("/b")).is_none());
        let small = Bytes::from_static(b"[]");
        for number in 0..MOST_QUESTIONS * 2 {
            shared.keep(&view, question(&format!("/{number}")), &small);
        }
        let kept = shared.answers.lock().unwrap().bodies.len();
        assert_eq!(kept, MOST_QUESTIONS);
    }
}
