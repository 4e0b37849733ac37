//! What README tells a newcomer to do, done: `dev`, `register`, DNS, HTTP and the command line's tables.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{Launch, PATIENCE, Process, TestService, ask, eventually, http_client, muster_binary};
use serde_json::Value;

struct Dev {
    _process: Process,
    directory: tempfile::TempDir,
    http: String,
    dns: std::net::SocketAddr,
}

fn dev() -> Result<Dev> {
    let directory = tempfile::tempdir()?;
    let any = "127.0.0.1:0";
    let (data, log) = (directory.path().join("data"), directory.path().join("dev.log"));
    let arguments =
        ["dev", "--json", "--http", any, "--dns", any, "--xds", any, "--registry", any, "--node", "laptop", "--data"];
    let arguments: Vec<&str> = arguments.into_iter().chain([data.to_str().context("path")?]).collect();
    let (process, bound) = Process::start(&Launch::default(), &arguments, &log)?;
    let http = format!("http://{}", bound["http"].as_str().context("http")?);
    let dns = bound["dns"].as_str().context("dns")?.parse()?;
    Ok(Dev { _process: process, directory, http, dns })
}

impl Dev {
    fn muster(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(muster_binary()?).args(arguments).env("MUSTER_HTTP_ADDR", &self.http).output()?)
    }

    fn says(&self, arguments: &[&str]) -> Result<String> {
        let output = self.muster(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "muster {arguments:?}: {} {errors}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    async fn serves(&self, count: usize) -> Result<()> {
        eventually("DNS to answer", || async {
            let answer = ask(self.dns, "web.service.mesh.internal.", "SRV").await?;
            ensure!(answer.records.len() == count, "{answer:?}");
            Ok(Some(()))
        })
        .await
    }
}

fn definition(port: u16) -> Result<String> {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/quickstart/web.toml");
    let text = std::fs::read_to_string(example)?;
    ensure!(text.contains("8080"), "the example has another port than this test replaces");
    Ok(text.replace("8080", &port.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomers_commands_work() -> Result<()> {
    let dev = dev()?;
    let web = TestService::start("web").await?;
    let file = dev.directory.path().join("web.toml");
    std::fs::write(&file, definition(web.address.port())?)?;
    let said = dev.says(&["register", file.to_str().context("path")?])?;
    ensure!(said.contains("registered") && said.contains("web"), "{said}");
    ensure!(said.contains("not passing before its first check, within 2s: see muster services web"), "{said}");
    dev.serves(1).await?;

    let listed = dev.says(&["services"])?;
    ensure!(listed.contains("SERVICE") && listed.contains("web"), "{listed}");
    let instances = dev.says(&["services", "web"])?;
    ensure!(instances.contains("passing") && instances.contains(&web.address.port().to_string()), "{instances}");
    let entries: Value = serde_json::from_str(&dev.says(&["services", "web", "--json"])?)?;
    ensure!(entries[0]["Service"]["Service"] == "web", "{entries}");
    let nodes = dev.says(&["nodes"])?;
    ensure!(nodes.contains("laptop") && nodes.contains("passing"), "{nodes}");
    let members = dev.says(&["members"])?;
    ensure!(members.contains("leader"), "{members}");

    // Out of service it is not counted as passing, and its row says why.
    let maintenance = |query: &str| {
        let url = format!("{}/v1/agent/service/maintenance/web?{query}", dev.http);
        async move { anyhow::Ok(http_client(PATIENCE)?.put(url).send().await?.error_for_status()?) }
    };
    maintenance("enable=true&reason=disk+swap").await?;
    eventually("the command line to say that web is out", || async {
        let (listed, rows) = (dev.says(&["services"])?, dev.says(&["services", "web"])?);
        ensure!(listed.contains("1 in maintenance") && !listed.contains("passing"), "{listed}");
        ensure!(rows.contains("maintenance") && rows.contains("disk swap"), "{rows}");
        Ok(Some(()))
    })
    .await?;
    maintenance("enable=false").await?;
    dev.serves(1).await?;
    let watched = dev.says(&["watch", "web", "--count", "1"])?;
    ensure!(watched.contains("1 instances"), "{watched}");

    let id = entries[0]["Service"]["ID"].as_str().context("no id")?;
    dev.says(&["deregister", id])?;
    eventually("the name to be gone", || async {
        let answer = ask(dev.dns, "web.service.mesh.internal.", "SRV").await?;
        ensure!(answer.rcode.contains("Non-Existent"), "{answer:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_file_is_taken_up_and_a_removed_one_is_let_go() -> Result<()> {
    let dev = dev()?;
    let web = TestService::start("web").await?;
    let directory = dev.directory.path().join("data/services.d");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("web.toml"), definition(web.address.port())?)?;
    dev.serves(1).await?;
    std::fs::write(directory.join("web.toml"), "[service]\nname = \"we b\"\n")?;
    dev.serves(1).await?;
    std::fs::remove_file(directory.join("web.toml"))?;
    dev.serves(0).await
}

#[test]
fn mistakes_are_explained_and_end_with_64() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bad.toml");
    std::fs::write(&file, "[service]\nname = \"web\"\nprot = 80\n")?;
    let output = Command::new(muster_binary()?).arg("validate").arg(&file).output()?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(64), "{:?}: {errors}", output.status);
    ensure!(errors.contains("bad.toml") && errors.contains("prot") && errors.contains('3'), "{errors}");

    let output = Command::new(muster_binary()?).args(["services", "--http-addr", "127.0.0.1:1"]).output()?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && errors.contains("muster dev"), "{:?}: {errors}", output.status);
    Ok(())
}
