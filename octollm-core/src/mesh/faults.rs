//! The faults that are planned, by arm.

use super::fault::{Fault, FaultPlan};
use crate::transport::Call;

#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<(String, FaultPlan)>,
}

impl Faults {
    pub(super) fn plan(&mut self, arm: String, plan: FaultPlan) {
        self.planned.push((arm, plan));
    }

    pub(super) fn heal(&mut self, arm: &str) {
        self.planned.retain(|(planned, _)| planned != arm);
    }

    /// What becomes of the next call to an arm.
    pub(super) fn meet(&mut self, arm: &str, call: &Call) -> Option<Fault> {
        let mut plans = self.planned.iter_mut().filter(|(planned, _)| planned == arm);
        let met = plans.find_map(|(_, plan)| plan.meet(call));
        self.planned.retain(|(_, plan)| !plan.is_over() || !plan.has_fired());
        met
    }

    pub(super) fn unfired(&self) -> Vec<String> {
        let unfired = self.planned.iter().filter(|(_, plan)| !plan.has_fired());
        unfired.map(|(arm, plan)| format!("{arm}: {plan}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{parts::ContextParts, transport::StepKey};

    fn call(input: &'static str) -> Call {
        let contract = "code.validate".parse().unwrap();
        Call::new(contract, StepKey::Order(0), input.into(), ContextParts::new())
    }

    #[test]
    fn a_fault_can_depend_on_the_input() {
        let mut faults = Faults::default();
        let even = |number: &u64| number.is_multiple_of(2);
        faults.plan("judge".into(), Fault::Crash.times(2).when(even).after(1));
        let mut met = |input| faults.meet("judge", &call(input)).is_some();
        let inputs = ["1", "2", "3", "\"4\"", "4", "5", "6", "8"];
        assert_eq!(inputs.map(&mut met), [false, false, false, false, true, false, true, false]);
    }

    proptest! {
        #[test]
        fn a_plan_is_for_the_calls_that_it_says(after in 0_usize..5, times in prop::option::of(0_usize..5), calls in 0_usize..15) {
            let asked = call("{}");
            let plan = match times {
                Some(times) => Fault::Crash.times(times),
                None => Fault::Crash.always(),
            };
            let mut faults = Faults::default();
            faults.plan("judge".into(), plan.after(after));
            for call in 0..calls {
                prop_assert_eq!(faults.meet("coder", &asked), None);
                let expected = call >= after && times.is_none_or(|times| call < after + times);
                prop_assert_eq!(faults.meet("judge", &asked).is_some(), expected);
            }
            prop_assert_eq!(faults.unfired().is_empty(), calls > after && times != Some(0));
        }
    }

    #[test]
    fn plans_hold_one_behind_the_other() {
        let call = call("{}");
        let mut faults = Faults::default();
        faults.plan("judge".into(), Fault::Crash.once());
        faults.plan("judge".into(), Fault::Hang.once().after(1));
        faults.plan("judge".into(), Fault::DropReply.once());
        let met: Vec<_> = (0..4).map(|_| faults.meet("judge", &call)).collect();
        assert_eq!(met, [Some(Fault::Crash), Some(Fault::DropReply), Some(Fault::Hang), None]);
        faults.plan("judge".into(), Fault::Crash.always());
        faults.heal("judge");
        assert_eq!(faults.meet("judge", &call), None);
    }
}
