import Foundation
import XCTest

@testable import Qat

/// `QAT_MODEL` names a packed model with a chat template: scripts/test-swift.sh makes one.
final class SessionTests: XCTestCase {
    private func model() async throws -> Model {
        guard let path = ProcessInfo.processInfo.environment["QAT_MODEL"] else {
            throw XCTSkip("QAT_MODEL names no model")
        }
        return try await Model.open(URL(fileURLWithPath: path), device: .cpu)
    }

    private func heard(_ stream: AsyncThrowingStream<Event, Error>) async throws -> (String, Usage?) {
        var text = "", usage: Usage?
        for try await event in stream {
            switch event {
            case .text(let piece): text += piece
            case .end(let end): usage = end
            }
        }
        return (text, usage)
    }

    private func options(_ most: Int) -> Options {
        var options = Options()
        options.most = most
        return options
    }

    func testAnswersStreamAndAreTheSameEachTime() async throws {
        let model = try await model()
        XCTAssertTrue(model.info.layers > 0 && model.info.bitsPerWeight < 8 && model.device.hasPrefix("cpu ("))
        let (first, usage) = try await heard(Session(model, context: 256).write("Mia found", options: options(20)))
        let (again, _) = try await heard(Session(model, context: 256, kv: "f16").write("Mia found", options: options(20)))
        XCTAssertEqual(first, again)
        XCTAssertFalse(first.isEmpty)
        let told = try XCTUnwrap(usage)
        XCTAssertTrue(told.newTokens > 1 && told.newTokens <= 20 && told.end != .cancelled && told.tokensPerSecond! > 0)
        XCTAssertTrue(Memory.resident > 1 << 20)
    }

    func testATurnReadsOnlyWhatIsNew() async throws {
        let session = try Session(try await model())
        var said = [Message(.user, "Who found the key?")]
        let (answer, _) = try await heard(session.chat(said, options: options(12)))
        said += [Message(.assistant, answer), Message(.user, "And then?")]
        let (second, usage) = try await heard(session.chat(said, options: options(12)))
        XCTAssertTrue(try XCTUnwrap(usage).reusedTokens > 0)

        // The system wants memory back: the same answer, read anew.
        session.giveUpMemory()
        let (anew, all) = try await heard(session.chat(said, options: options(12)))
        XCTAssertEqual(anew, second)
        XCTAssertEqual(try XCTUnwrap(all).reusedTokens, 0)
        XCTAssertTrue(session.holdsMemory)
        // What was only written is not given up.
        _ = try await heard(session.write(" More", options: options(2)))
        session.giveUpMemory()
        let (_, more) = try await heard(session.write(" more", options: options(2)))
        XCTAssertTrue(try XCTUnwrap(more).reusedTokens > 0)
    }

    func testWhoeverStopsListeningCancelsAndTheSessionGoesOn() async throws {
        let session = try Session(try await model())
        var long = options(100_000)
        long.temperature = 1
        for count in [1, 3] {
            var pieces = 0
            for try await event in session.write("Mia", options: long) {
                guard case .text = event else { continue }
                pieces += 1
                if pieces == count { break }
            }
            XCTAssertEqual(pieces, count)
        }
        // In a task that is cancelled from outside.
        let reading = Task {
            var pieces = 0
            for try await _ in session.write("Mia", options: long) { pieces += 1 }
            return pieces
        }
        try await Task.sleep(nanoseconds: 30_000_000)
        reading.cancel()
        _ = try? await reading.value
        // The next answer isn't touched by any of it.
        let (text, usage) = try await heard(session.write("Mia", options: options(5)))
        XCTAssertFalse(text.isEmpty)
        XCTAssertNotEqual(try XCTUnwrap(usage).end, .cancelled)
    }

    func testMistakesAreErrorsWithTheirReasons() async throws {
        do {
            _ = try await Model.open(URL(fileURLWithPath: "/no/such/model"))
            XCTFail("opened")
        } catch QatError.model(let message) {
            XCTAssertTrue(message.contains("/no/such/model"), message)
        }
        let model = try await model()
        XCTAssertThrowsError(try Session(model, kv: "f8"))
        let session = try Session(model, context: 32)
        do {
            _ = try await heard(session.write(String(repeating: "Mia ", count: 1000)))
            XCTFail("too long")
        } catch QatError.invalid(let message) {
            XCTAssertTrue(message.contains("context of 32"), message)
        }
        let (text, _) = try await heard(session.write("Mia", options: options(3)))
        XCTAssertFalse(text.isEmpty)
    }

    func testHeatSlowsAnAnswerDownAndThenEndsIt() {
        var pace = Pace()
        XCTAssertEqual(pace.next(after: 0.1, heat: .nominal), .goOn)
        XCTAssertEqual(pace.next(after: 0.1, heat: .fair), .goOn)
        XCTAssertEqual(pace.next(after: 0.125, heat: .serious), .pause(0.125))
        XCTAssertEqual(pace.next(after: 30, heat: .serious), .pause(1))
        XCTAssertEqual(pace.next(after: 0.1, heat: .critical), .stop)
        pace.share = 0.25
        XCTAssertEqual(pace.next(after: 0.125, heat: .serious), .pause(0.375))
        pace.share = 1
        XCTAssertEqual(pace.next(after: 0.125, heat: .serious), .goOn)
    }
}
