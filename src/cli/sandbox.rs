#[derive(clap::Args)]
pub struct Options {}
pub async fn run(_: Options) -> Result<(), super::start::StartError> { Ok(()) }
