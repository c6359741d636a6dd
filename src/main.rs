fn main() -> anyhow::Result<std::process::ExitCode> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut flags = portreeve::agent::settings::Flags::default();
    let mut args = std::env::args().skip(2);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-dev" => flags.dev = true,
            "-dev-consul" => flags.dev_consul = true,
            "-config" => flags.config.push(args.next().unwrap().into()),
            "-data-dir" => flags.data_dir = Some(args.next().unwrap().into()),
            _ => panic!("{arg}"),
        }
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(portreeve::agent::app::run(flags))
}
