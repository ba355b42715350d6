"""The ground floor: named trees and spaces, errors, chunks and budgets, registries, randomness, progress."""
