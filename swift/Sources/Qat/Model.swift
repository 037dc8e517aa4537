import CQat
import Foundation

/// What runs a model.
public enum Device: String, Sendable {
    /// Apple's GPU where there is one that will do, else the processor.
    case auto
    case cpu
    case metal
}

/// Why something was not done.
public enum QatError: Error, Equatable, Sendable, CustomStringConvertible {
    /// An argument is out of its range, or the conversation is too long for the context.
    case invalid(String)
    /// Files of the model are missing or damaged.
    case model(String)
    /// Another answer is being written in this session.
    case busy
    /// The app may not hold as much memory as the model's files have, in bytes.
    case tooLarge(needed: UInt64, available: UInt64)
    /// The device is so hot that the system asks apps to stop. What was written until then was given out.
    case tooHot
    /// A mistake of the library.
    case `internal`(String)

    public var description: String {
        switch self {
        case .invalid(let message), .model(let message), .internal(let message): return message
        case .busy: return "another answer is being written in this session"
        case .tooLarge(let needed, let available):
            return "the model's files have \(needed >> 20) MiB, and this app may take \(available >> 20) MiB more"
        case .tooHot: return "the device is too hot; let it cool down"
        }
    }
}

/// Weights, tokenizer and chat template, shared by sessions. Free of data races: nothing changes after it was opened.
public final class Model: @unchecked Sendable {
    /// What a model is.
    public struct Info: Equatable, Sendable {
        /// Tokens of the vocabulary.
        public let vocabulary: Int
        /// Longest context, in tokens.
        public let context: Int
        public let layers: Int
        /// Bytes of the files that hold the weights.
        public let fileBytes: UInt64
        /// Stored bits of all tensors per weight.
        public let bitsPerWeight: Double
        /// Whether there is a chat template.
        public let hasChat: Bool
    }

    let pointer: OpaquePointer
    public let info: Info
    /// What it runs on, as "metal (Apple A17 Pro GPU, Apple 9)".
    public let device: String

    /// Opens the model at `url`, which takes a moment: from an app, `await Model.open(_:)`.
    public init(contentsOf url: URL, device: Device = .auto) throws {
        try Memory.check(files: url)
        var opened: OpaquePointer?
        try checked { qat_model_open(url.path, device.rawValue, &opened, $0) }
        guard let opened else { throw QatError.internal("a model that is none") }
        pointer = opened
        var told = qat_info()
        do {
            try checked { qat_model_info(opened, &told, $0) }
        } catch {
            qat_model_close(opened)
            throw error
        }
        info = Info(
            vocabulary: Int(told.vocab), context: Int(told.context), layers: Int(told.layers), fileBytes: told.file_bytes,
            bitsPerWeight: told.bits_per_weight, hasChat: told.has_chat)
        let name = qat_model_device(opened)
        self.device = name.map { String(cString: $0) } ?? ""
        qat_string_free(name)
    }

    /// Opens the model at `url` off the caller's actor.
    public static func open(_ url: URL, device: Device = .auto) async throws -> Model {
        try await withCheckedThrowingContinuation { continuation in
            DispatchQueue.global(qos: .userInitiated).async {
                continuation.resume(with: Result { try Model(contentsOf: url, device: device) })
            }
        }
    }

    deinit {
        // Sessions keep what they need.
        qat_model_close(pointer)
    }
}

/// Does `call`, and throws what it says went wrong.
func checked(_ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> qat_status) throws {
    var message: UnsafeMutablePointer<CChar>?
    let status = call(&message)
    defer { qat_string_free(message) }
    let text = message.map { String(cString: $0) } ?? ""
    switch status {
    case QAT_STATUS_OK: return
    case QAT_STATUS_INVALID: throw QatError.invalid(text)
    case QAT_STATUS_MODEL: throw QatError.model(text)
    case QAT_STATUS_BUSY: throw QatError.busy
    default: throw QatError.internal(text)
    }
}
