import type { Image } from '../domain/image.ts';
import { imageName, kindOf } from '../storage/image.ts';
import type { Prober } from './prober.ts';

/** An answer takes milliseconds; after so long there is reason to look closer, before the deadline passes. */
const suspectMs = 1_000;

/** How many questions are begun a second at most, however many backends there are: most cost a process. */
const questionsPerSecond = 2;

/** A backend of which even an answer is costly, as that of a cluster, is asked more seldom: by so many times what it takes, up to so long. */
const restsPerQuestion = 50;
const mostRestMs = 30_000;

export interface BackendsParts {
  prober: Prober;
  /** How often a backend is asked. */
  intervalMs: () => number;
  /** Told of each owner of images on a backend that is late to answer, or that answers again. */
  suspected: (owner: string) => void;
}

/** How the last question about a backend went, or goes. */
export interface BackendReport {
  /** As the kind of its storage names it: `nbd:HOST:PORT`, `mount:PATH` and the like. */
  name: string;
  /** Whether it has answered, or has been asked for less than the deadline. */
  answers: boolean;
  /** How long it took, or has lasted for; null if it was never asked. */
  tookMs: number | null;
}

interface Backend {
  images: Map<string, { image: Image; owners: Set<string> }>;
  /** Whose turn it is. */
  next: number;
  dueAtMs: number;
  asking: boolean;
  /** By performance.now(), of the last question. */
  askedAtMs: number;
  tookMs: number | null;
  /** It has answered since it is in use: a server that takes one client alone, QEMU, never does. */
  hasAnswered: boolean;
  isSilent: boolean;
}

/**
 * Asks every server, device and file system that copies in use lie on whether it still answers: one question at a time each, about one
 * of its images after the other.
 */
export class Backends {
  readonly #prober: Prober;
  readonly #intervalMs: () => number;
  readonly #suspected: (owner: string) => void;
  readonly #backends = new Map<string, Backend>();
  /** What each owner has in use. */
  readonly #owned = new Map<string, string>();
  readonly #timer: NodeJS.Timeout;

  constructor({ prober, intervalMs, suspected }: BackendsParts) {
    this.#prober = prober;
    this.#intervalMs = intervalMs;
    this.#suspected = suspected;
    this.#timer = setInterval(() => this.#askOne(), 1000 / questionsPerSecond);
    this.#timer.unref();
  }

  /** These are the images that an owner has in use from now on. */
  watch(owner: string, images: Image[]): void {
    const key = images.map(imageName).sort().join('\n');
    if ((this.#owned.get(owner) ?? '') === key) return;
    this.#owned.set(owner, key);
    for (const [name, backend] of this.#backends) {
      for (const [image, { owners }] of backend.images)
        if (owners.delete(owner) && owners.size === 0) backend.images.delete(image);
      if (backend.images.size === 0 && !backend.asking) this.#backends.delete(name);
    }
    for (const image of images) {
      const { images: known } = this.#backendOf(image);
      const entry = known.get(imageName(image)) ?? { image, owners: new Set<string>() };
      entry.owners.add(owner);
      known.set(imageName(image), entry);
    }
  }

  /** What an image lies on has answered since it is in use, so that its silence means something. */
  hasAnswered(image: Image): boolean {
    return this.#of(image)?.hasAnswered === true;
  }

  /** What an image lies on does not answer, though it did before. */
  isSilent(image: Image): boolean {
    const backend = this.#of(image);
    return backend?.hasAnswered === true && backend.isSilent;
  }

  report(): BackendReport[] {
    return [...this.#backends].map(([name, { asking, askedAtMs, tookMs, isSilent }]) => ({
      name,
      answers: !isSilent,
      tookMs: asking ? Math.max(tookMs ?? 0, performance.now() - askedAtMs) : tookMs,
    }));
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #of({ source }: Image): Backend | undefined {
    return this.#backends.get(kindOf(source).backend(source));
  }

  #backendOf(image: Image): Backend {
    const name = kindOf(image.source).backend(image.source);
    const known = this.#backends.get(name);
    if (known !== undefined) return known;
    const backend: Backend = {
      images: new Map(),
      next: 0,
      dueAtMs: 0,
      asking: false,
      askedAtMs: 0,
      tookMs: null,
      hasAnswered: false,
      isSilent: false,
    };
    this.#backends.set(name, backend);
    return backend;
  }

  #askOne(): void {
    const now = Date.now();
    const due = [...this.#backends.values()].filter(
      ({ asking, dueAtMs, images }) => !asking && dueAtMs <= now && images.size > 0,
    );
    const [first] = due.sort((a, b) => a.dueAtMs - b.dueAtMs);
    if (first !== undefined) void this.#ask(first);
  }

  async #ask(backend: Backend): Promise<void> {
    const images = [...backend.images.values()];
    const entry = images[backend.next++ % images.length];
    if (entry === undefined) return;
    const wasSilent = backend.isSilent;
    backend.askedAtMs = performance.now();
    backend.asking = true;
    const late = setTimeout(() => this.#tell(backend), suspectMs);
    // A tool that is missing says nothing against the storage.
    const answered = await this.#prober.ask(entry.image).catch(() => true);
    clearTimeout(late);
    backend.asking = false;
    const tookMs = performance.now() - backend.askedAtMs;
    backend.tookMs = tookMs;
    const restMs = Math.max(this.#intervalMs(), Math.min(mostRestMs, restsPerQuestion * tookMs));
    backend.dueAtMs = Date.now() + (answered ? restMs : suspectMs);
    backend.isSilent = !answered;
    if (answered) backend.hasAnswered = true;
    if (backend.isSilent !== wasSilent) this.#tell(backend);
  }

  #tell({ images }: Backend): void {
    for (const owner of new Set([...images.values()].flatMap(({ owners }) => [...owners]))) this.#suspected(owner);
  }
}
