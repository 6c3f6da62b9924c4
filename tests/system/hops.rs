//! Three arms in a row, each behind its own server: what ends at the top ends at the bottom.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm::{budget::Usage, context::ContextParts, deadline::Deadline, http::Arms, prelude::*};
use tokio::{io::AsyncWriteExt, sync::watch, time::timeout};

/// Passed on until it reaches the bottom.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "top.dig", output = u64, timeout = "60s")]
struct Top {
    spend: u64,
}

/// The hop in the middle.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "middle.dig", output = u64, timeout = "60s")]
struct Middle {
    spend: u64,
}

/// The bottom: spends, or waits for ever where there is nothing to spend.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "bottom.dig", output = u64, timeout = "60s")]
struct Bottom {
    spend: u64,
}

struct Passes;

#[async_trait]
impl Arm<Top> for Passes {
    async fn execute(&self, task: Top, cx: &Context) -> Result<u64, ArmError> {
        Ok(cx.call(Middle { spend: task.spend }).await?)
    }
}

#[async_trait]
impl Arm<Middle> for Passes {
    async fn execute(&self, task: Middle, cx: &Context) -> Result<u64, ArmError> {
        cx.spend(Usage::tokens(task.spend))?;
        Ok(cx.call(Bottom { spend: task.spend }).await?)
    }
}

/// How many executions of the bottom are under way.
struct Leaf(watch::Sender<usize>);

struct UnderWay(watch::Sender<usize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[async_trait]
impl Arm<Bottom> for Leaf {
    async fn execute(&self, task: Bottom, cx: &Context) -> Result<u64, ArmError> {
        self.0.send_modify(|count| *count += 1);
        let _under_way = UnderWay(self.0.clone());
        if task.spend == 0 {
            std::future::pending::<()>().await;
        }
        let left = cx.budget().tokens.unwrap_or(u64::MAX);
        cx.spend(Usage::tokens(task.spend))?;
        Ok(left)
    }
}

struct Hops {
    arms: Arms,
    top: std::net::SocketAddr,
    under_way: watch::Receiver<usize>,
}

impl Hops {
    async fn start() -> Self {
        let (sender, under_way) = watch::channel(0);
        let bottom = Server::new("bottom").arm::<Bottom>(Leaf(sender)).bind("127.0.0.1:0").await.unwrap();
        let to_bottom = Arms::builder().endpoint("bottom", bottom.url()).build().unwrap();
        let middle =
            Server::new("middle").arm::<Middle>(Passes).arms(to_bottom).bind("127.0.0.1:0").await.unwrap();
        let to_middle = Arms::builder().endpoint("middle", middle.url()).build().unwrap();
        let top = Server::new("top").arm::<Top>(Passes).arms(to_middle).bind("127.0.0.1:0").await.unwrap();
        let arms = Arms::builder().endpoint("top", top.url()).build().unwrap();
        let address = top.local_addr();
        for server in [bottom, middle, top] {
            tokio::spawn(server.run());
        }
        Self { arms, top: address, under_way }
    }

    async fn reached(&mut self, count: usize) {
        let reached = self.under_way.wait_for(|now| *now == count);
        timeout(Duration::from_secs(10), reached)
            .await
            .expect("within ten seconds")
            .expect("the leaf is there");
    }

    fn context(&self, parts: ContextParts) -> Context {
        Context::from_parts(parts, Arc::new(self.arms.clone()))
    }
}

#[tokio::test]
async fn a_caller_that_drops_its_call_stops_the_work_three_hops_down() {
    let mut hops = Hops::start().await;
    let (arms, calls) = (hops.arms.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    let call = tokio::spawn(async move {
        let answer = arms.call(Top { spend: 0 }).await;
        counted.fetch_add(1, Ordering::SeqCst);
        answer
    });
    hops.reached(1).await;
    call.abort();
    hops.reached(0).await;
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_caller_that_hangs_up_stops_the_work_three_hops_down() {
    let mut hops = Hops::start().await;
    let mut socket = tokio::net::TcpStream::connect(hops.top).await.unwrap();
    let request = "POST /dig HTTP/1.1\r\nhost: top\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"spend\":0}";
    socket.write_all(request.as_bytes()).await.unwrap();
    hops.reached(1).await;
    drop(socket);
    hops.reached(0).await;
}

#[tokio::test]
async fn a_deadline_that_passes_stops_the_work_three_hops_down() {
    let mut hops = Hops::start().await;
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(Duration::from_millis(400)));
    let cx = hops.context(parts);
    let call = tokio::spawn(async move { cx.call(Top { spend: 0 }).await });
    hops.reached(1).await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    hops.reached(0).await;
}

#[tokio::test]
async fn what_is_used_three_hops_down_is_gone_at_the_top() {
    let hops = Hops::start().await;
    let mut parts = ContextParts::new();
    parts.budget = "tokens=1000".parse().unwrap();
    let cx = hops.context(parts);
    assert_eq!(cx.call(Top { spend: 100 }).await.unwrap(), 900, "the middle has spent 100 before it calls");
    assert_eq!(cx.budget().tokens, Some(800));
    assert_eq!(cx.call(Top { spend: 800 }).await.unwrap_err().kind(), ErrorKind::BudgetExhausted);
}
