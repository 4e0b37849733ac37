use muster_catalog::Status;

use super::{
    super::samples::{check, everything},
    *,
};

fn bytes(part: &Push) -> usize {
    let rows = part.instances.iter().map(instance_bytes).chain(part.checks.iter().map(check_bytes)).sum::<usize>();
    let names = part.removed_instances.iter().chain(&part.removed_checks);
    rows + names.map(|id| id.len() + 8).sum::<usize>()
}

#[test]
fn a_small_push_stays_whole_and_a_large_one_goes_in_parts_that_imply_nothing() {
    assert_eq!(divide(everything(10, 2, 100), None), [everything(10, 2, 100)]);
    let parts = divide(everything(2_400, 2, 1_200), None);
    assert!(parts.len() > 5, "{}", parts.len());
    for part in &parts {
        assert!(!part.complete);
        assert!(bytes(part) <= PART_BYTES, "{}", bytes(part));
        let here: BTreeSet<_> = part.instances.iter().map(|row| Some(&row.id)).collect();
        assert!(part.checks.iter().all(|row| here.contains(&row.instance.as_ref())), "with its instance");
    }
    assert_eq!(parts.iter().map(|part| part.instances.len()).sum::<usize>(), 2_400);
    assert_eq!(parts.iter().map(|part| part.checks.len()).sum::<usize>(), 4_800);
}

#[test]
fn an_instance_goes_with_its_checks_while_a_member_takes_them_and_else_with_the_worst_first() {
    let together = divide(everything(2, 400, 4_000), None);
    assert_eq!(together.iter().map(|part| part.checks.len()).collect::<Vec<_>>(), [400, 400]);
    let apart = divide(everything(1, 900, 4_000), None);
    assert!(apart.len() > 1);
    assert_eq!(apart[0].instances.len(), 1);
    let worst: Vec<Status> = apart.iter().flat_map(|part| &part.checks).map(|check| check.status).collect();
    assert!(worst.is_sorted_by(|a, b| a >= b));
    assert_eq!(worst.len(), 900);
    assert!(together.iter().chain(&apart).all(|part| bytes(part) <= GROUP_BYTES));
}

#[test]
fn the_longest_names_of_what_goes_fit_and_come_last() {
    let names = |kind: &str| (0..3_000).map(|at| format!("{kind}{at:0>511}").into()).collect();
    let push = Push { removed_instances: names("i"), removed_checks: names("c"), ..everything(1, 1, 10) };
    let parts = divide(Push { complete: false, ..push }, None);
    assert_eq!(parts[0].instances.len(), 1);
    let count = |part: &Push| part.removed_instances.len() + part.removed_checks.len();
    assert_eq!(parts.iter().map(count).collect::<Vec<_>>(), [0, 1024, 1024, 952, 1024, 1024, 952]);
    assert!(parts.iter().all(|part| bytes(part) <= GROUP_BYTES));
}

#[test]
fn halves_say_what_the_whole_said_down_to_what_goes_together() {
    let mut whole = everything(5, 2, 10);
    whole.checks.push(check("n1", None, Status::Passing, 10));
    whole.checks.push(check("n2", None, Status::Passing, 10));
    let (mut left, mut alone) = (vec![whole], Vec::new());
    while let Some(part) = left.pop() {
        match halve(part, None) {
            Ok((first, second)) => left.extend([second, first]),
            Err(part) => alone.push(part),
        }
    }
    let shape: Vec<_> = alone.iter().map(|part| (part.instances.len(), part.checks.len())).collect();
    assert_eq!(shape, [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2)]);
    // Names alone are no rows: there is nothing to find in them.
    let gone = Push { removed_checks: vec!["a".into(), "b".into()], ..Push::default() };
    assert_eq!(halve(gone.clone(), None), Err(gone));
}
