export type Listener<T> = (event: T) => void;
export type Unsubscribe = () => void;

/** What one listener throws keeps no other from being called; it surfaces as an uncaught exception. */
export function callEach<T>(listeners: Iterable<Listener<T>>, event: T): void {
  for (const listener of listeners) {
    try {
      listener(event);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}
