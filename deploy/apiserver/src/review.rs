//! Who may do what: all may do all, unless that is to go wrong next for want of a right.

use serde_json::{Value, json};

use crate::{Answer, State};

/// Where clients ask what they may do.
pub(crate) const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// The answer to a `SelfSubjectAccessReview`.
pub(crate) fn answer(mut review: Value, state: &State) -> (u16, Value) {
    let asked = &review["spec"]["resourceAttributes"];
    let denied = state.faults.iter().any(|fault| {
        fault.times > 0
            && fault.answer == Answer::Forbidden
            && asked["verb"] == fault.verb
            && asked["resource"] == fault.resource
    });
    review["status"] = json!({"allowed": !denied});
    (201, review)
}
