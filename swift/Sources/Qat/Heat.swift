import Foundation

/// How warm the device is, as the system has it.
public enum Heat: Int, Sendable, Comparable {
    case nominal, fair, serious, critical

    public static func < (a: Heat, b: Heat) -> Bool { a.rawValue < b.rawValue }

    /// What the system says now; nominal where it says nothing (Linux).
    public static var now: Heat {
        #if canImport(Darwin)
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: return .nominal
        case .fair: return .fair
        case .serious: return .serious
        case .critical: return .critical
        @unknown default: return .serious
        }
        #else
        return .nominal
        #endif
    }
}

/// What is done about heat between two pieces of an answer. At `serious` the system has already lowered its clocks and asks apps to do less; at
/// `critical` it asks them to stop.
public struct Pace: Equatable, Sendable {
    /// From here on the answer is slowed down.
    public var slowFrom: Heat = .serious
    /// Share of the time that is worked then: 0.5 halves the speed and about the power.
    public var share = 0.5
    /// From here on it is ended with `QatError.tooHot`.
    public var stopFrom: Heat = .critical
    /// Longest pause.
    public var longest: TimeInterval = 1

    public init() {}

    public enum Step: Equatable, Sendable {
        case goOn
        case pause(TimeInterval)
        case stop
    }

    /// What to do after a piece that took `seconds`.
    public func next(after seconds: TimeInterval, heat: Heat) -> Step {
        if heat >= stopFrom { return .stop }
        guard heat >= slowFrom, share < 1 else { return .goOn }
        let pause = max(seconds, 0) * (1 / max(share, 0.01) - 1)
        return .pause(min(pause, longest))
    }
}
