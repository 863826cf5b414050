//! Exit codes of the errors of `cutover-s3`.

use cutover_s3::S3Error;

use super::Classify;
use crate::exit::Exit;

impl Classify for S3Error {
    fn exit(&self) -> Exit {
        if self.is_usage() {
            Exit::Usage
        } else if self.is_contention() {
            Exit::InProgress
        } else {
            Exit::Failed
        }
    }

    fn hints(&self) -> Vec<String> {
        vec![self.hint().to_owned()]
    }
}
