import CQat
import Foundation

/// What somebody said.
public struct Message: Equatable, Sendable {
    public enum Role: String, Sendable { case system, user, assistant }
    public var role: Role
    public var content: String

    public init(_ role: Role, _ content: String) {
        self.role = role
        self.content = content
    }
}

/// How an answer is written.
public struct Options: Equatable, Sendable {
    /// Most tokens to write.
    public var most = 512
    /// Logits are divided by this; 0 takes the likeliest token always.
    public var temperature: Float = 0
    /// So many of the likeliest tokens are considered; 0 for all.
    public var topK = 0
    public var topP: Float = 1
    public var minP: Float = 0
    /// Logits of the last `repetitionLast` tokens are lowered by this factor; 1 does nothing.
    public var repetitionPenalty: Float = 1
    public var repetitionLast = 64
    public var seed: UInt64 = 0
    /// Texts that end the answer, which they don't belong to.
    public var stops: [String] = []
    /// What is done about heat.
    public var pace = Pace()

    public init() {}
}

/// A piece of an answer, or its end.
public enum Event: Equatable, Sendable {
    case text(String)
    case end(Usage)
}

/// What an answer took.
public struct Usage: Equatable, Sendable {
    public enum End: Equatable, Sendable { case stop, length, cancelled }
    /// Tokens that were read for it, and those of the prompt that had been read before.
    public let promptTokens, reusedTokens: Int
    public let newTokens: Int
    /// Tokens that the session remembers now.
    public let position: Int
    /// To the first token, and from there to the last.
    public let firstSeconds, restSeconds: Double
    public let end: End

    /// After the first token; pauses for heat are in it.
    public var tokensPerSecond: Double? {
        newTokens > 1 && restSeconds > 0 ? Double(newTokens - 1) / restSeconds : nil
    }
}

/// A text that is read and written. Answers are written on a queue of the session's own, never on the caller's actor.
public final class Session: @unchecked Sendable {
    private let model: Model
    private let context: Int
    private let kv: String?
    private let queue = DispatchQueue(label: "qat.session", qos: .userInitiated)
    /// Guards `state`. The pointer itself may be used without it: the native session refuses a second call, and is closed on `queue` alone.
    private let lock = NSLock()
    private var state = State()
    private var watch: MemoryWatch?

    private struct State {
        var pointer: OpaquePointer?
        /// Whether what the native session remembers can be made anew from the next call's arguments.
        var isExpendable = true
    }

    /// A session for texts of up to `context` tokens (0: 4096, or the model's longest if that is less), keys and values kept as `kv`:
    /// "f16" unless said otherwise, "int8" or "int4" for long texts in little memory. When the system asks for memory while no answer is
    /// being written, the keys and values of a chat are given up; the next turn reads the conversation again.
    public init(_ model: Model, context: Int = 0, kv: String? = nil) throws {
        self.model = model
        self.context = context
        self.kv = kv
        state.pointer = try open()
        watch = MemoryWatch { [weak self] in self?.giveUpMemory() }
    }

    deinit {
        qat_session_close(state.pointer)
    }

    /// Reads `prompt` after all that the session has read and written, and writes on. Whoever stops listening cancels the answer.
    public func write(_ prompt: String, options: Options = Options()) -> AsyncThrowingStream<Event, Error> {
        answer(options, isExpendable: false) { session, options, user, usage, error in
            qat_session_write(session, prompt, options, onText, user, usage, error)
        }
    }

    /// Answers a whole conversation, written as the model's chat template has it. What the session has read of it isn't read again.
    public func chat(_ messages: [Message], options: Options = Options()) -> AsyncThrowingStream<Event, Error> {
        answer(options, isExpendable: true) { session, options, user, usage, error in
            withCStrings(messages.flatMap { [$0.role.rawValue, $0.content] }) { texts in
                let said = stride(from: 0, to: texts.count, by: 2).map { qat_message(role: texts[$0], content: texts[$0 + 1]) }
                return qat_session_chat(session, said, said.count, options, onText, user, usage, error)
            }
        }
    }

    /// Forgets all that was read and written.
    public func reset() throws {
        guard let pointer = lock.withLock({ state.pointer }) else { return }
        try checked { qat_session_reset(pointer, $0) }
    }

    /// Closes the native session if it is idle and can be made anew.
    func giveUpMemory() {
        queue.async { [self] in
            let pointer = lock.withLock { () -> OpaquePointer? in
                guard state.isExpendable else { return nil }
                defer { state.pointer = nil }
                return state.pointer
            }
            qat_session_close(pointer)
        }
    }

    /// Whether keys and values are held.
    var holdsMemory: Bool { lock.withLock { state.pointer != nil } }

    private func open() throws -> OpaquePointer {
        var opened: OpaquePointer?
        try checked { qat_session_open(model.pointer, UInt64(max(context, 0)), kv, &opened, $0) }
        guard let opened else { throw QatError.internal("a session that is none") }
        return opened
    }

    /// The native session, opened again if it was given up.
    private func ready(isExpendable: Bool) throws -> OpaquePointer {
        let held = lock.withLock { () -> OpaquePointer? in
            state.isExpendable = isExpendable
            return state.pointer
        }
        if let held { return held }
        let opened = try open()
        lock.withLock { state.pointer = opened }
        return opened
    }

    private typealias Call = (
        OpaquePointer, UnsafePointer<qat_options>, UnsafeMutableRawPointer, UnsafeMutablePointer<qat_usage>,
        UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
    ) -> qat_status

    private func answer(_ options: Options, isExpendable: Bool, _ call: @escaping Call) -> AsyncThrowingStream<Event, Error> {
        AsyncThrowingStream { continuation in
            let hearing = Hearing(continuation, options.pace)
            continuation.onTermination = { [self] end in
                guard case .cancelled = end else { return }
                hearing.cancel()
                // A prompt is still being read, perhaps. Not after this answer's end: the next one is not to be cancelled.
                hearing.ifWorking { lock.withLock { state.pointer.map { qat_session_cancel($0) } } }
            }
            queue.async { [self] in
                if hearing.wasCancelled { return continuation.finish() }
                do {
                    let session = try ready(isExpendable: isExpendable)
                    var usage = qat_usage()
                    hearing.isWorking(true)
                    defer { hearing.isWorking(false) }
                    try withExtendedLifetime(hearing) {
                        try options.withNative { native in
                            try checked { call(session, native, Unmanaged.passUnretained(hearing).toOpaque(), &usage, $0) }
                        }
                    }
                    if hearing.isTooHot { throw QatError.tooHot }
                    continuation.yield(.end(Usage(usage)))
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }
}

/// Who hears an answer: the way from C's callback to the stream.
private final class Hearing: @unchecked Sendable {
    private let continuation: AsyncThrowingStream<Event, Error>.Continuation
    private let pace: Pace
    private let lock = NSLock()
    private var isCancelled = false
    private var works = false
    private var last = Date()
    private(set) var isTooHot = false

    init(_ continuation: AsyncThrowingStream<Event, Error>.Continuation, _ pace: Pace) {
        self.continuation = continuation
        self.pace = pace
    }

    func cancel() { lock.withLock { isCancelled = true } }

    var wasCancelled: Bool { lock.withLock { isCancelled } }

    func isWorking(_ now: Bool) { lock.withLock { works = now } }

    func ifWorking(_ action: () -> Void) { lock.withLock { if works { action() } } }

    /// Hears a piece, and says whether to go on. Called on the session's queue alone.
    func hear(_ text: String) -> Bool {
        continuation.yield(.text(text))
        if wasCancelled { return false }
        switch pace.next(after: Date().timeIntervalSince(last), heat: Heat.now) {
        case .goOn: break
        case .pause(let seconds): Thread.sleep(forTimeInterval: seconds)
        case .stop:
            isTooHot = true
            return false
        }
        last = Date()
        return true
    }
}

private let onText: qat_on_text = { user, text, _ in
    guard let user, let text else { return 1 }
    return Unmanaged<Hearing>.fromOpaque(user).takeUnretainedValue().hear(String(cString: text)) ? 0 : 1
}

extension Options {
    fileprivate func withNative<R>(_ body: (UnsafePointer<qat_options>) throws -> R) rethrows -> R {
        try withCStrings(stops) { texts in
            try texts.withUnsafeBufferPointer { stops in
                var native = qat_options_default()
                native.most = UInt64(max(most, 0))
                native.temperature = temperature
                native.top_k = UInt64(max(topK, 0))
                native.top_p = topP
                native.min_p = minP
                native.repetition_penalty = repetitionPenalty
                native.repetition_last = UInt64(max(repetitionLast, 0))
                native.seed = seed
                native.stops = stops.baseAddress
                native.stop_count = stops.count
                return try body(&native)
            }
        }
    }
}

extension Usage {
    fileprivate init(_ usage: qat_usage) {
        promptTokens = Int(usage.prompt_tokens)
        reusedTokens = Int(usage.reused_tokens)
        newTokens = Int(usage.new_tokens)
        position = Int(usage.position)
        firstSeconds = usage.first_seconds
        restSeconds = usage.rest_seconds
        switch usage.end {
        case QAT_END_STOP: end = .stop
        case QAT_END_LENGTH: end = .length
        default: end = .cancelled
        }
    }
}

/// `texts` as C has them, for the time of `body`.
private func withCStrings<R>(_ texts: [String], _ body: ([UnsafePointer<CChar>?]) throws -> R) rethrows -> R {
    let copies = texts.map { strdup($0) }
    defer { copies.forEach { free($0) } }
    return try body(copies.map { UnsafePointer($0) })
}
